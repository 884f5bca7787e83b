"""A job in its first segment: its progress shows, and a stop waits for it no longer than it may."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from instance import CHECKOUT, Instance, repeat_clip
from stores import Stores

from app.jobs.job import OWNER, JobState
from app.storage.data_folder import DataFolder

STOP_SECONDS = 3.0
AFTERWARDS_SECONDS = 5.0  # hosts are killed, jobs put back, nginx and gunicorn end
FRAMES = 96 * 8


@pytest.mark.exclusive
def test_progress_shows_in_the_first_segment_and_a_stop_gives_it_up_in_time(tmp_path: Path) -> None:
    video = repeat_clip(CHECKOUT / "docs" / "walkers.mp4", tmp_path / "long.mp4", times=8)
    settings = {"segment_frames": 10_000, "stop_seconds": STOP_SECONDS}
    with Instance(tmp_path / "data", **settings) as instance:
        job_id = instance.post_async(video)
        seen = [_progress(instance, job_id)]

        def has_moved() -> bool:
            seen.append(_progress(instance, job_id))
            return len({progress["frames_in_progress"] for progress in seen}) > 3

        instance.wait(has_moved, 60, "progress")
        assert all(progress["segments_done"] == progress["frames_done"] == 0 for progress in seen)
        assert seen[-1]["frames_total"] == FRAMES
        assert 0 < seen[-1]["fraction"] < 1
        moved = [progress["frames_in_progress"] for progress in seen]
        assert moved == sorted(moved)
        instance.host().suspend()  # as one that is deep in a model: it heeds nothing that it is told
        family, began = instance.processes(), time.monotonic()
        os.kill(instance.supervisor_pid, signal.SIGINT)  # as Ctrl-C reaches it
        assert not psutil.wait_procs(family, timeout=STOP_SECONDS + AFTERWARDS_SECONDS)[1], instance.tail()
        assert time.monotonic() - began >= STOP_SECONDS, "it had its time"
    told = [line for line in map(_read, instance.log.read_text().splitlines()) if line]
    (waits,) = [line for line in told if line["event"] == "stopping: waiting for running segments"]
    assert (waits["at_most_seconds"], waits["segments"], waits["jobs"]) == (STOP_SECONDS, 1, 1)
    (given_up,) = [line for line in told if line["event"].startswith("stopping: segments are given up")]
    assert given_up["segments"] == 1
    assert not [line for line in told if "SIGKILL" in str(line.get("detail"))], (
        "the supervisor has to kill nothing"
    )
    store = Stores(DataFolder(instance.data).database)
    assert (store.get(job_id, owner=OWNER).state, store.get(job_id, owner=OWNER).deaths) == (
        JobState.QUEUED,
        0,
    )
    store.database.close()


def _progress(instance: Instance, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = instance.report(job_id)["progress"]
    return found


def _read(line: str) -> dict[str, Any] | None:
    """A line of the log; None for the words on standard error, which the file has too."""
    if not line.startswith("{"):
        return None
    found: dict[str, Any] = json.loads(line)
    return found
