"""A one-second clip, detector `none`: what a job costs when its video costs nothing.

    python -m benchmarks short_jobs [--rounds 3] [--requests 40] [--seconds 10]

In turns with a plain service of Flask, gunicorn and OpenCV (`plain_service.py`): seconds a request of one
caller, and jobs a second of four. Then where a job's time goes, stage by stage, and the processor time a job
of each program. No answer is reused.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import psutil
import requests

from benchmarks.census import CHECKOUT, Instance, make_clip, processes
from benchmarks.machine import describe_machine

FRAMES = 13
SIZE = "768x432"
CALLERS = 4
WORKERS = 2  # of the plain service: one a core
START_SECONDS = 30.0
WARM_REQUESTS = 5
LEAST_RATE = 0.4  # of the plain service's jobs a second, four callers
MOST_LATENCY = 3.0  # of its seconds a request, one caller

_local = threading.local()


@dataclass(frozen=True)
class Answer:
    """One request and what came back. Times are Unix seconds."""

    began: float
    ended: float
    job_id: str | None  # None: the plain service's

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def post(url: str, video: bytes) -> Answer:
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    began = time.time()
    answer = _local.session.post(
        f"{url}/v1/detections",
        params={"model": "none"},
        data=video,
        headers={"Content-Type": "video/mp4"},
        timeout=60,
    )
    ended = time.time()
    answer.raise_for_status()
    if len(answer.json()) != FRAMES:
        raise ValueError(f"{len(answer.json())} frames instead of {FRAMES}")
    return Answer(began, ended, answer.headers.get("Framebox-Job"))


def one_caller(url: str, video: bytes, count: int) -> list[Answer]:
    return [post(url, video) for _ in range(count)]


def jobs_a_second(url: str, video: bytes, seconds: float) -> float:
    """Of `CALLERS` callers, each of whom sends the next video once it has its answer."""
    end = time.monotonic() + seconds

    def call(_: int) -> int:
        count = 0
        while time.monotonic() < end:
            post(url, video)
            count += 1
        return count

    began = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as callers:
        count = sum(callers.map(call, range(CALLERS)))
    return count / (time.monotonic() - began)


@contextmanager
def plain_service(log: Path) -> Iterator[str]:
    """Yield the address of the peer, which has started."""
    command = [sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--bind", "127.0.0.1:0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "benchmarks.plain_service:app"],
            cwd=log.parent,  # there is no gunicorn.conf.py
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=output,
            stderr=output,
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """gunicorn says which port the kernel gave it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://"):
                return word
        time.sleep(0.05)
    raise RuntimeError(f"the plain service does not start\n{log.read_text()}")


# ---- where the time goes


def stages(instance: Instance, answers: list[Answer]) -> dict[str, float]:
    """Median seconds of each stage of these jobs, in order."""
    segments = segment_lines(instance.log)
    spans: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        report, segment = instance.report(str(answer.job_id)), segments[str(answer.job_id)]
        segment_ended = _time(segment["timestamp"])
        times = {
            "sent → recorded": answer.began,
            "recorded → claimed": _time(report["created_at"]),
            "claimed → segment begun: the index": _time(report["started_at"]),
            "segment begun → its part is there": segment_ended - segment["seconds"],
            "part → recorded as ended: the document": segment_ended,
            "ended → answered": _time(report["finished_at"]),
        }
        ends = [*list(times.values())[1:], answer.ended]
        for (stage, began), ended in zip(times.items(), ends, strict=True):
            spans[stage].append(ended - began)
    return {stage: statistics.median(seconds) for stage, seconds in spans.items()}


def segment_lines(log: Path) -> dict[str, dict[str, Any]]:
    """What the engine's log says of each job's last segment."""
    found = {}
    with log.open("rb") as lines:
        for line in lines:
            if b'"segment finished"' in line:
                entry = orjson.loads(line)
                found[entry["job_id"]] = entry
    return found


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def processor_seconds(instance: Instance) -> dict[str, float]:
    """What each program has used so far; decoder children, also those that ended, with their parent."""
    used: dict[str, float] = defaultdict(float)
    for kind, members in processes(instance).items():
        is_decoding = kind.startswith("decoder")
        for process in members:
            times = process.cpu_times()
            name = "decoder children and their parent" if is_decoding else kind
            used[name] += times.user + times.system
            if is_decoding:
                used[name] += times.children_user + times.children_system
    return used


def tell_where(instance: Instance, video: bytes, count: int) -> None:
    before = processor_seconds(instance)
    answers = one_caller(instance.url, video, count)
    after = processor_seconds(instance)
    print(f"\nof {count} jobs, one after another:\n\n| stage | median |\n|---|---|")
    for stage, seconds in stages(instance, answers).items():
        print(f"| {stage} | {1000 * seconds:.1f} ms |")
    print(f"| all | {1000 * statistics.median(answer.seconds for answer in answers):.1f} ms |")
    print("\n| program | processor time a job |\n|---|---|")
    used = {kind: (after[kind] - before[kind]) / count for kind in after}
    for kind, seconds in sorted(used.items(), key=lambda item: -item[1]):
        if seconds >= 0.0001:
            print(f"| {kind} | {1000 * seconds:.1f} ms |")
    print(f"| all | {1000 * sum(used.values()):.1f} ms |")


# ---- in turns


def measure(instance: Instance, plain_url: str, video: bytes, arguments: argparse.Namespace) -> None:
    urls = {"framebox": instance.url, "plain": plain_url}
    for url in urls.values():
        one_caller(url, video, WARM_REQUESTS)
    latencies: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, url in urls.items():
            latencies[name] += [answer.seconds for answer in one_caller(url, video, arguments.requests)]
        for name, url in urls.items():
            rates[name].append(jobs_a_second(url, video, arguments.seconds))
    print("| | framebox | plain | ratio | target |\n|---|---|---|---|---|")
    for name, place in (("median", 0.5), ("90 % within", 0.9)):
        own, other = (1000 * sorted(latencies[who])[int(place * (len(latencies[who]) - 1))] for who in urls)
        target = f"≤ {MOST_LATENCY}" if place == 0.5 else ""
        print(f"| one caller, {name} | {own:.1f} ms | {other:.1f} ms | {own / other:.2f} | {target} |")
    own, other = (statistics.median(rates[who]) for who in urls)
    print(f"| {CALLERS} callers | {own:.1f}/s | {other:.1f}/s | {own / other:.2f} | ≥ {LEAST_RATE} |")
    ratios = (f"{a / b:.2f}" for a, b in zip(rates["framebox"], rates["plain"], strict=True))
    print(f"\nratios of the rounds, {CALLERS} callers: {', '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=40, help="of one caller, a round")
    parser.add_argument("--seconds", type=float, default=10.0, help="of four callers, a round")
    arguments = parser.parse_args()
    print(describe_machine())
    print(f"other work: {psutil.cpu_percent(1.0):.0f} % of {os.cpu_count()} cores before it begins\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = make_clip(folder / "clip.mp4", frames=FRAMES, size=SIZE, rate=FRAMES, gop=FRAMES)
        with Instance(folder / "data") as instance, plain_service(folder / "plain.log") as plain_url:
            measure(instance, plain_url, clip.read_bytes(), arguments)
            tell_where(instance, clip.read_bytes(), 2 * arguments.requests)


if __name__ == "__main__":
    main()
