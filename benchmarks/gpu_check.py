"""What a GPU makes of this service, in five minutes: the one command for whoever has one for a short time.

    python -m benchmarks gpu_check [--only STEP…] [--seconds 300] [--folder FOLDER] [--small]

Each step is a process of its own with a limit of its own: one that fails or hangs takes nothing from the
others. Figures are printed as they come, and all of them once more at the end. A network is *bare* on frames
that lie in the device's memory. Video and networks are made from a seed, in FOLDER, with the tests' whole
output. Without a CUDA device, or with --small, everything is small, and it takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import gpu_steps
from benchmarks.gpu_bench import FULL, SMALL, Check
from benchmarks.gpu_steps import CHECKOUT, ITSELF, job_in_parts

# Each with the most seconds that it may take.
STEPS: dict[str, tuple[Callable[[Check], None], int]] = {
    "machine": (gpu_steps.machine, 40),
    "tests": (gpu_steps.cuda_tests, 120),
    "material": (gpu_steps.material, 60),
    "jobs": (gpu_steps.jobs, 120),
    "memory": (gpu_steps.memory, 50),
    "kills": (gpu_steps.kills, 100),
    "batches": (gpu_steps.batches, 80),
}


def run_steps(check: Check, names: list[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for name in names:
        if name == "tests" and check.device == "cpu":
            check.tell("CUDA tests", "NOT DONE: no CUDA device")
            continue
        limit = min(STEPS[name][1], deadline - time.monotonic())
        if limit < 5:
            check.tell(f"step {name}", "NOT DONE: no time is left")
            continue
        print(f"\n---- {name}, {limit:.0f} s at most", flush=True)
        command = [*ITSELF, *check.arguments, "--step", name]
        started = time.monotonic()
        with subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True) as step:
            try:
                status = step.wait(limit)
                ended = f"NOT DONE: status {status}" if status else "done"
            except subprocess.TimeoutExpired:
                os.killpg(step.pid, signal.SIGKILL)
                ended = "NOT DONE: stopped"
        check.tell(f"step {name}", f"{ended} after {time.monotonic() - started:.0f} s")
    print("\n| what | figure |\n|---|---|")
    for line in (check.folder / "figures").read_text(encoding="utf-8").splitlines():
        print("| " + " | ".join(json.loads(line)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = SMALL if chosen.small or not torch.cuda.is_available() else FULL
    if chosen.step:
        STEPS[chosen.step][0](Check(chosen.folder, sizes))
    elif chosen.job:
        job_in_parts(Check(chosen.folder, sizes), *chosen.job)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = chosen.folder or Path(scratch)
            folder.mkdir(exist_ok=True)
            run_steps(Check(folder, sizes), chosen.only, chosen.seconds)


if __name__ == "__main__":
    main()
