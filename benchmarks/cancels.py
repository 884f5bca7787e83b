"""Cancels jobs at random times of their lives, and looks for what they leave behind.

    python -m benchmarks cancels [--cancels 300] [--seed 1]

A few jobs run at a time, of both models, so that cancellations meet uploads, queues, indexing, decoding, the
detector, the document and the end. Prints: states, seconds from the request until the job's end is told, by
the state that the job was in, and what the instance has more or less of than before.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import requests

from benchmarks.census import (
    CHECKOUT,
    Instance,
    differences,
    leftover_files,
    make_clip,
    processes,
    repeat_clip,
    state_at_rest,
    strangers,
)
from benchmarks.machine import describe_machine

JOBS_AT_ONCE = 4
LONGEST_LIFE_SECONDS = 4.0
POLL_SECONDS = 0.005
SETTLE_SECONDS = 30.0
FINAL = ("succeeded", "failed", "cancelled")


class Outcomes:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.states: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, before: str, after: str, seconds: float) -> None:
        with self.lock:
            self.states[after] += 1
            self.seconds[before].append(seconds)


def cancel_some(
    instance: Instance,
    orders: list[tuple[Path, dict[str, object]]],
    count: int,
    seed: int,
    outcomes: Outcomes,
) -> None:
    """Post a job, let it live for a random time, cancel it; `count` times."""
    chance, session = random.Random(seed), requests.Session()
    for _ in range(count):
        video, options = chance.choice(orders)
        job_id = instance.post_async(video, **options)
        time.sleep(LONGEST_LIFE_SECONDS * chance.random() ** 2)  # young ones more often
        address = f"{instance.url}/v1/jobs/{job_id}"
        before = session.get(address, timeout=30).json()["state"]
        if before in FINAL:
            outcomes.add("ended", before, 0.0)
            continue
        began = time.monotonic()
        session.delete(address, timeout=30)
        answer = session.get(address, timeout=30)
        while answer.status_code == 200 and answer.json()["state"] not in FINAL:
            time.sleep(POLL_SECONDS)
            answer = session.get(address, timeout=30)
        state = answer.json()["state"] if answer.status_code == 200 else "deleted"
        outcomes.add(before, state, time.monotonic() - began)


def run(instance: Instance, folder: Path, arguments: argparse.Namespace) -> None:
    walkers = repeat_clip(CHECKOUT / "docs" / "walkers.mp4", folder / "walkers.mp4", times=6)
    drawn = make_clip(folder / "drawn.mp4", frames=5000, size="320x240")
    orders: list[tuple[Path, dict[str, Any]]] = [
        (walkers, {"model": "hog-people", "max_side": 320}),
        (drawn, {"model": "none"}),
    ]
    for video, options in orders:
        instance.wait_for_end(instance.post_async(video, **options))
    settle(instance, {})
    before = state_at_rest(instance)
    memory = bytes_of_programs(instance)
    outcomes = Outcomes()
    threads = [
        threading.Thread(
            target=cancel_some,
            args=(
                instance,
                orders,
                arguments.cancels // JOBS_AT_ONCE,
                arguments.seed * 10 + number,
                outcomes,
            ),
            name=f"canceller-{number}",
        )
        for number in range(JOBS_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(instance, before)
    tell(instance, outcomes, before, memory)


def settle(instance: Instance, before: dict[str, int]) -> None:
    """Wait until nothing is under way; not for ever, for then it is left over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        is_quiet = not processes(instance).get("decoder") and not leftover_files(instance.data)
        if is_quiet and (not before or not differences(before, state_at_rest(instance))):
            return
        time.sleep(0.2)


def bytes_of_programs(instance: Instance) -> dict[str, int]:
    programs = {"engine": instance.engine(), "host": instance.host()}
    return {name: process.memory_info().rss for name, process in programs.items()}


def tell(instance: Instance, outcomes: Outcomes, before: dict[str, int], memory: dict[str, int]) -> None:
    print(f"ends of {outcomes.states.total()} jobs: {dict(outcomes.states)}")
    for state, seconds in sorted(outcomes.seconds.items()):
        print(
            f"cancelled when {state}: {len(seconds)}; until stopped "
            f"median {statistics.median(seconds):.3f} s, longest {max(seconds):.3f} s"
        )
    print(f"files left: {leftover_files(instance.data) or 'none'}")
    print(f"processes left: {strangers(instance) or 'none'}")
    print(f"at rest, before → after: {differences(before, state_at_rest(instance)) or 'the same'}")
    mib = 1024 * 1024
    for name, size in bytes_of_programs(instance).items():
        print(f"{name}'s memory: {memory[name] // mib} → {size // mib} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cancels", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name, Instance(Path(name) / "data", segment_frames=50) as instance:
        run(instance, Path(name), arguments)


if __name__ == "__main__":
    main()
