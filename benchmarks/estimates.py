"""How right `seconds_left` is, from the first tenth of a job's time to its last.

    python -m benchmarks estimates [--seconds 40]

The error is the estimate's distance from what was really left, divided by that. Each model alone, beside
another long job, and resumed by a new engine after the old one was killed half way.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from benchmarks.census import CHECKOUT, Instance, make_clip, repeat_clip
from benchmarks.machine import describe_machine

POLL_SECONDS = 0.25
GOOD = 0.2


@dataclass
class Observed:
    """What a job's report said while it ran. Times of time.monotonic."""

    began: float
    ended: float = 0.0
    said: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds left)

    def errors(self) -> list[float]:
        first = self.began + 0.1 * (self.ended - self.began)
        last = self.began + 0.9 * (self.ended - self.began)
        return [
            abs(left - (self.ended - when)) / (self.ended - when)
            for when, left in self.said
            if first <= when <= last
        ]


def observe(instance: Instance, job_id: str, at_half: Callable[[], None] | None = None) -> Observed:
    """Follow a job to its end; `at_half` is called once, and what comes after counts as a run of its own."""
    instance.wait(lambda: instance.report(job_id)["state"] == "running", 120, "a running job")
    found = Observed(time.monotonic())
    while (report := _report(instance, job_id))["state"] not in ("succeeded", "failed", "cancelled"):
        progress = report["progress"]
        if progress["seconds_left"] is not None:
            found.said.append((time.monotonic(), progress["seconds_left"]))
        if at_half is not None and (progress["fraction"] or 0.0) >= 0.5:
            at_half()
            at_half = None
            instance.wait(instance.is_ready, 120, "a new engine")
            found = Observed(time.monotonic())
        time.sleep(POLL_SECONDS)
    found.ended = time.monotonic()
    return found


def _report(instance: Instance, job_id: str) -> dict[str, Any]:
    while True:
        try:
            return instance.report(job_id)
        except requests.RequestException:
            time.sleep(POLL_SECONDS)


def tell(name: str, found: Observed) -> None:
    errors = found.errors()
    seconds = found.ended - found.began
    if not errors:
        print(f"{name}: {seconds:.0f} s, no estimate")
        return
    good = sum(error <= GOOD for error in errors) / len(errors)
    print(
        f"{name}: {seconds:.0f} s, {len(errors)} estimates; error median {statistics.median(errors):.0%}, "
        f"worst {max(errors):.0%}; within {GOOD:.0%}: {good:.0%}"
    )


def measure(instance: Instance, video: Path, options: dict[str, str], name: str) -> None:
    tell(f"{name}, alone", observe(instance, instance.post_async(video, **options)))
    other = instance.post_async(video, **options)
    beside = instance.post_async(video, **options)
    tell(f"{name}, beside another", observe(instance, beside))
    instance.wait_for_end(other, 1200)
    resumed = instance.post_async(video, **options)
    tell(f"{name}, resumed", observe(instance, resumed, at_half=lambda: instance.engine().kill()))


def video_for(instance: Instance, folder: Path, options: dict[str, str], seconds: float) -> Path:
    """A video that takes about so long alone, of the walkers or, for `none`, larger and drawn."""
    is_drawn = options["model"] == "none"
    once = folder / "once.mp4"
    if is_drawn:
        make_clip(once, frames=1500, size="1280x720", gop=60)
    else:
        repeat_clip(CHECKOUT / "docs" / "walkers.mp4", once, times=3)
    started = time.monotonic()
    instance.wait_for_end(instance.post_async(once, **options))
    times = max(2, round(seconds / (time.monotonic() - started)))
    return repeat_clip(once, folder / f"{options['model']}.mp4", times=times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="about so long takes a job alone")
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name, Instance(Path(name) / "data") as instance:
        for options in ({"model": "none"}, {"model": "hog-people"}):
            video = video_for(instance, Path(name), options, arguments.seconds)
            measure(instance, video, options, str(options["model"]))
