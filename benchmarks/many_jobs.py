"""A thousand small jobs and one big one at a time: order, fairness, waiting, memory.

    python -m benchmarks many_jobs [--jobs 1000] [--big-seconds 60]

All are posted without waiting, the big one first; meanwhile somebody posts a small one now and then and waits
for the answer. Detector `none`, so that the engine's own work is what is measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.census import Instance, make_clip, processes, repeat_clip
from benchmarks.machine import describe_machine

POSTERS = 8
ASK_EVERY_SECONDS = 1.0
PAGE = 200
MIB = 1024 * 1024
OPTIONS = {"model": "none"}


class Watch(threading.Thread):
    """Looks at memory, asks for pages of the list, and has a small job done while it waits."""

    def __init__(self, instance: Instance, small: Path) -> None:
        super().__init__(name="watch")
        self.stopping = threading.Event()
        self.bytes: Counter[str] = Counter()  # the most of any process of a kind
        self.waits: list[float] = []
        self.lists: list[float] = []
        self._instance = instance
        self._small = small

    def run(self) -> None:
        while not self.stopping.wait(ASK_EVERY_SECONDS):
            self._look()
            self.lists.append(_seconds_of(lambda: _page(self._instance, {"limit": PAGE, "state": "queued"})))
            self.waits.append(_seconds_of(lambda: self._instance.post(self._small, **OPTIONS)))

    def _look(self) -> None:
        for kind, members in processes(self._instance).items():
            for process in members:
                try:
                    self.bytes[kind] = max(self.bytes[kind], process.memory_info().rss)
                except psutil.Error:
                    continue


def _seconds_of(call: Any) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _page(instance: Instance, query: dict[str, Any]) -> dict[str, Any]:
    page: dict[str, Any] = requests.get(f"{instance.url}/v1/jobs", params=query, timeout=60).json()
    return page


def reports(instance: Instance, ids: set[str]) -> list[dict[str, Any]]:
    """The reports of the jobs, in the order in which they were accepted, from the list's pages."""
    found, query = [], {"limit": PAGE}
    while True:
        page = _page(instance, query)
        found += [job for job in page["jobs"] if job["id"] in ids]
        if page["next"] is None:
            return found[::-1]
        query = {"limit": PAGE, "cursor": page["jobs"][-1]["id"]}


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def big_alone(instance: Instance, video: Path) -> float:
    report = instance.wait_for_end(instance.post_async(video, **OPTIONS), 1200)
    return _time(report["finished_at"]) - _time(report["started_at"])


def run(instance: Instance, folder: Path, arguments: argparse.Namespace) -> None:
    small = make_clip(folder / "small.mp4", frames=30, size="160x120")
    once = make_clip(folder / "once.mp4", frames=3000, size="320x240")
    seconds = max(0.1, big_alone(instance, once))
    big = repeat_clip(once, folder / "big.mp4", times=max(2, round(arguments.big_seconds / seconds)))
    alone = big_alone(instance, big)
    watch = Watch(instance, small)
    watch.start()
    big_id = instance.post_async(big, **OPTIONS)
    started = time.monotonic()
    with ThreadPoolExecutor(POSTERS) as posters:
        ids = set(posters.map(lambda _: instance.post_async(small, **OPTIONS), range(arguments.jobs)))
    accepted = time.monotonic() - started
    instance.wait(lambda: not _active(instance, ids), 1800, "the small jobs' ends")
    done = time.monotonic() - started
    fraction = instance.report(big_id)["progress"]["fraction"] or 0.0
    watch.stopping.set()
    watch.join()
    big_report = instance.wait_for_end(big_id, 1200)
    print(f"{arguments.jobs} small jobs: accepted in {accepted:.1f} s, done in {done:.1f} s")
    tell_order(reports(instance, ids))
    beside = _time(big_report["finished_at"]) - _time(big_report["started_at"])
    print(f"big job: {alone:.1f} s alone, {beside:.1f} s beside them; {fraction:.0%} done when they were")
    tell_times("who waits for a small one", watch.waits)
    tell_times(f"a page of {PAGE} queued jobs", watch.lists)
    for kind, size in sorted(watch.bytes.items()):
        print(f"largest {kind}: {size // MIB} MiB")


def _active(instance: Instance, ids: set[str]) -> bool:
    states = ("queued", "running")
    jobs = [job["id"] for state in states for job in _page(instance, {"state": state, "limit": 2})["jobs"]]
    return any(job_id in ids for job_id in jobs)


def tell_order(jobs: list[dict[str, Any]]) -> None:
    """Jobs are listed in the order of their acceptance: how far from it were they begun?"""
    begun = sorted(range(len(jobs)), key=lambda place: _time(jobs[place]["started_at"]))
    shifts = [abs(place - was) for place, was in enumerate(begun)]
    states = Counter(job["state"] for job in jobs)
    print(f"ends: {dict(states)}; begun at most {max(shifts)} places from the order of acceptance")
    tell_times("run of a small job", [_time(job["finished_at"]) - _time(job["started_at"]) for job in jobs])


def tell_times(name: str, seconds: list[float]) -> None:
    if seconds:
        tail = sorted(seconds)[int(0.95 * (len(seconds) - 1))]
        median = statistics.median(seconds)
        print(f"{name}: median {median:.3f} s, 95 % within {tail:.3f} s, longest {max(seconds):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument(
        "--big-seconds", type=float, default=60.0, help="about so long takes the big one alone"
    )
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name, Instance(Path(name) / "data") as instance:
        run(instance, Path(name), arguments)


if __name__ == "__main__":
    main()
