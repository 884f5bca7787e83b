"""Measurements are made by hand, and seldom: here they are at least started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.timeout(600)  # under a minute on cores that are idle
def test_the_check_of_a_gpu_runs_through_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu_check", "--small", "--seconds", "500"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=550,
        check=True,
    )
    figures = dict(map(json.loads, (tmp_path / "figures").read_text().splitlines()))
    steps = {name: figure for name, figure in figures.items() if name.startswith("step ")}
    assert len(steps) >= 6
    assert all(figure.startswith("done") for figure in steps.values()), done.stderr
    assert figures["kills, small float32"].startswith("equal bytes")
    undone = {name for name, figure in figures.items() if figure.startswith("NOT DONE")}
    assert undone <= {"GPU", "CUDA tests"}, done.stderr


def test_every_benchmark_finds_what_it_needs():
    command = [sys.executable, "-c", IMPORT_ALL, str(CHECKOUT)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
