"""Cuts the power of an instance's disk at random times while clients post, and starts again on what is left.

    python -m benchmarks power_loss [--cuts 50] [--seed 1]      (as root: it mounts file systems)

The disk is `tests/e2e/crash_disk.py`'s: a copy of one instant, without what was not synced. After each cut an
instance is started on the copy. Counted: jobs that had been accepted (202) and are gone, ends that had been
told and are others now, answers that differ from the undisturbed ones, and what is left over.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.census import (
    CHECKOUT,
    CrashDisk,
    Instance,
    leftover_files,
    make_clip,
    segments_done_twice,
)
from benchmarks.machine import describe_machine

SETTINGS = {"segment_frames": 16, "min_free_bytes": 0, "keep_free_bytes": 0, "http_workers": 1}
CLIENTS = 2
ACTIVE_JOBS = 3  # a client: accepted and not ended
JOB_SECONDS = 300.0


@dataclass
class Told:
    """What clients have been told, as far as it goes at one instant."""

    orders: dict[str, str] = field(default_factory=dict)  # of accepted jobs, by id: the order's name
    ended: set[str] = field(default_factory=set)

    def copy(self) -> Told:
        return Told(dict(self.orders), set(self.ended))


class Clients:
    """Post jobs, a few at a time each, and see them end."""

    def __init__(
        self, instance: Instance, videos: dict[str, tuple[Path, dict[str, object]]], seed: int
    ) -> None:
        self._instance = instance
        self._videos = videos
        self._lock = threading.Lock()
        self._told = Told()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._work, args=(random.Random(seed * 100 + number),), name=f"client-{number}"
            )
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(JOB_SECONDS)

    def told(self) -> Told:
        with self._lock:
            return self._told.copy()

    def _work(self, chance: random.Random) -> None:
        active: list[str] = []
        while not self._stopping.is_set():
            if len(active) < ACTIVE_JOBS:
                name = chance.choice([*self._videos])
                video, options = self._videos[name]
                job_id = self._instance.post_async(video, **options)
                active.append(job_id)
                with self._lock:
                    self._told.orders[job_id] = name
            for job_id in list(active):
                if self._instance.report(job_id)["state"] == "succeeded":
                    active.remove(job_id)
                    with self._lock:
                        self._told.ended.add(job_id)


def start_again(data: Path, told: Told, answers: dict[str, bytes]) -> Counter[str]:
    """Start an instance on what the cut left; count what became of what had been told."""
    found: Counter[str] = Counter()
    with Instance(data, **SETTINGS) as instance:
        for job_id, order in told.orders.items():
            state = instance.report(job_id).get("state", "gone")
            found["ended jobs whose end was lost"] += job_id in told.ended and state != "succeeded"
            found["accepted jobs lost"] += state == "gone"
            if state != "gone":
                found["jobs that went on"] += state in ("queued", "running")
                is_same = instance.wait_for_end(job_id, JOB_SECONDS)["state"] == "succeeded" and (
                    instance.result(job_id) == answers[order]
                )
                found["answers equal" if is_same else "answers NOT equal"] += 1
        found["files left"] += len(_settled_leftovers(instance))
        found["segments done twice"] += segments_done_twice(instance.log)[1]
    with closing(sqlite3.connect(data / "framebox.sqlite3")) as records:
        found["broken databases"] += records.execute("PRAGMA integrity_check").fetchone() != ("ok",)
    return found


def _settled_leftovers(instance: Instance) -> list[str]:
    """Jobs of clients that were not told yet may still run."""
    deadline = time.monotonic() + JOB_SECONDS
    while (left := leftover_files(instance.data)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def run(disk: CrashDisk, folder: Path, arguments: argparse.Namespace) -> None:
    chance = random.Random(arguments.seed)
    videos: dict[str, tuple[Path, dict[str, object]]] = {
        "walkers": (CHECKOUT / "docs" / "walkers.mp4", {"model": "hog-people", "max_side": 320}),
        "drawn": (make_clip(folder / "v.mp4", frames=500, size="160x120"), {"model": "none"}),
    }
    total: Counter[str] = Counter()
    for number in range(0, arguments.cuts, arguments.cuts_a_run):
        answers, cuts = work_and_cut(disk, videos, chance, arguments.cuts_a_run, number)
        for copy, told in cuts:
            with disk.after(copy) as root:
                total.update(start_again(root / "run" / "data", told, answers))
            total["cuts"] += 1
        shutil.rmtree(disk.root / "run")
        print(dict(total), flush=True)


def work_and_cut(
    disk: CrashDisk,
    videos: dict[str, tuple[Path, dict[str, object]]],
    chance: random.Random,
    cuts: int,
    number: int,
) -> tuple[dict[str, bytes], list[tuple[Path, Told]]]:
    """Run a new instance for a while; return the undisturbed answers, and the disk at some instants."""
    made = []
    (disk.root / "run").mkdir()
    with Instance(disk.root / "run" / "data", **SETTINGS) as instance:
        answers = {name: instance.post(video, **options).content for name, (video, options) in videos.items()}
        with Clients(instance, videos, seed=number) as clients:
            for cut in range(cuts):
                time.sleep(chance.uniform(0.0, 4.0))
                told = clients.told()
                made.append((disk.cut(f"cut-{number + cut}"), told))
    return answers, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--cuts-a-run", type=int, default=5, help="of one running instance")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name, CrashDisk(Path(name)) as disk:
        run(disk, Path(name), arguments)


if __name__ == "__main__":
    main()
