"""What a large answer costs on its way out: plain against plain nginx, and compressed, in the same run.

    python -m benchmarks downloads [--gigabytes 1] [--rounds 3]

nginx, gunicorn and the tests' stand-in for the engine; an answer of two boxes a frame with random numbers.
Prints wall and nginx' CPU seconds, medians of rounds in turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import requests

from benchmarks.machine import describe_machine

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "integration")]

from web_instance import WebInstance, running_instance  # noqa: E402

LINES_AT_A_TIME = 10_000


class Cost(NamedTuple):
    wall_seconds: float
    cpu_seconds: float  # of nginx
    received_bytes: int


def write_answer(path: Path, size_bytes: int, *, boxes: int = 2) -> None:
    """Write an answer of about that size, `boxes` a frame, their numbers random."""
    chance = random.Random(0)
    lines = [_line(number, boxes, chance) for number in range(LINES_AT_A_TIME)]
    block = ",\n".join(lines).encode() + b",\n"
    with path.open("wb") as file:
        file.write(b"[\n")
        for _ in range(-(-size_bytes // len(block)) - 1):
            file.write(block)
        file.write(block.removesuffix(b",\n") + b"\n]\n")


def _line(number: int, count: int, chance: random.Random) -> str:
    boxes = []
    for _ in range(count):
        left, top = chance.uniform(0, 1800), chance.uniform(0, 1000)
        corners = [left, top, left + chance.uniform(20, 120), top + chance.uniform(20, 80)]
        box = ",".join(f"{value:.1f}" for value in corners)
        boxes.append(f'{{"box":[{box}],"label":"person","score":{chance.uniform(0.3, 1):.3f}}}')
    return f"[{number},[{','.join(boxes)}]]"


def fetch(instance: WebInstance, url: str, *arguments: str) -> Cost:
    master = psutil.Process(instance.programs["nginx"].pid)
    before, started = _cpu_seconds(master), time.perf_counter()
    command = ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download}", *arguments, url]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return Cost(time.perf_counter() - started, _cpu_seconds(master) - before, int(shown.stdout))


def _cpu_seconds(master: psutil.Process) -> float:
    times = [process.cpu_times() for process in (master, *master.children())]
    return sum(time.user + time.system for time in times)


def _serve_plainly(text: str) -> str:
    """Let nginx also serve the jobs' folder by itself, as a peer to measure against."""
    root = text.partition('alias "')[2].partition('"')[0]
    place = "        location / {"
    assert place in text
    return text.replace(place, f'        location /plain/ {{ alias "{root}"; }}\n{place}', 1)


def measure(folder: Path, size_bytes: int, rounds: int) -> None:
    with running_instance(folder, _serve_plainly) as instance:
        posted = requests.post(f"{instance.url}/v1/detections", data=b'{"frames": 3}', timeout=60)
        job_id = posted.headers["Framebox-Job"]
        write_answer(instance.folder.result(job_id, "pairs"), size_bytes)
        ours = f"{instance.url}/v1/jobs/{job_id}/result"
        ways: dict[str, tuple[str, ...]] = {
            "plain nginx": (f"{instance.url}/plain/{job_id}/result.pairs",),
            "ours": (ours,),
            "ours, gzip": (ours, "-H", "Accept-Encoding: gzip"),
        }
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (url, *arguments) in ways.items():
                costs[name].append(fetch(instance, url, *arguments))
    for name, found in costs.items():
        wall, cpu = (statistics.median(cost[k] for cost in found) for k in (0, 1))
        megabytes = found[0].received_bytes / 1e6
        print(f"{name:12} {wall:7.2f} s, nginx CPU {cpu:6.2f} s, {megabytes:8.0f} MB received")
    ratios = [
        a.wall_seconds / b.wall_seconds for a, b in zip(costs["plain nginx"], costs["ours"], strict=True)
    ]
    print(
        f"speed of ours against plain nginx: {statistics.median(ratios):.2f}, {[round(r, 2) for r in ratios]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # /tmp may be memory
        measure(Path(folder), int(arguments.gigabytes * 1e9), arguments.rounds)
