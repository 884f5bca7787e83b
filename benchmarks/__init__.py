"""Measurements: ratios against a peer or a limit in the same run. Results are kept in docs/benchmarks.md."""
