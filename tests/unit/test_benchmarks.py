"""Measurements are made by hand, and seldom: here they are at least started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# Each begins as if it were the first: with the path of a new process, and without the tests' own modules.
IMPORT_ALL = """
import importlib, sys
from benchmarks.__main__ import NAMES

path, tests = [*sys.path], f"{sys.argv[1]}/tests/"
for name in NAMES:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)
    sys.path[:] = path
    for other, module in [*sys.modules.items()]:
        if other.startswith("benchmarks.") or (getattr(module, "__file__", None) or "").startswith(tests):
            del sys.modules[other]
"""


def test_every_benchmark_finds_what_it_needs():
    command = [sys.executable, "-c", IMPORT_ALL, str(CHECKOUT)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
