"""A power cut loses no job that was acknowledged, and no end that was told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash_disk import CrashDisk, NoSuchDisk
from instance import CHECKOUT, Instance

OPTIONS = {"model": "hog-people", "max_side": 320}
SETTINGS = {"segment_frames": 16, "min_free_bytes": 0, "keep_free_bytes": 0, "http_workers": 1}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[CrashDisk]:
    """Skips where no such disk can be had: it takes root, loop devices, ext4 and btrfs."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(CrashDisk(tmp_path))
        except NoSuchDisk as fault:
            pytest.skip(str(fault))
        yield disk


def test_a_power_cut_loses_nothing_that_was_told(disk: CrashDisk) -> None:
    video = CHECKOUT / "docs" / "walkers.mp4"
    with Instance(disk.root / "data", **SETTINGS) as instance:
        undisturbed = instance.post(video, **OPTIONS).content
        ended = instance.post_async(video, **OPTIONS)
        assert instance.wait_for_end(ended)["state"] == "succeeded"
        at_work = instance.post_async(video, **OPTIONS)
        parts = instance.data / "jobs" / at_work / "parts"
        instance.wait(lambda: parts.exists() and any(parts.glob("*.part")), 60, "a part")
        accepted = instance.post_async(video, **OPTIONS)
        copy = disk.cut("cut")
        instance.kill()
    with disk.after(copy) as root, Instance(root / "data", **SETTINGS) as instance:
        assert instance.report(ended)["state"] == "succeeded"
        for job_id in (at_work, accepted):
            assert instance.wait_for_end(job_id)["state"] == "succeeded"
        for job_id in (ended, at_work, accepted):
            assert instance.result(job_id) == undisturbed
            files = [path.name for path in (instance.data / "jobs" / job_id).iterdir()]
            assert files == ["result.pairs"]
        assert [*(instance.data / "incoming").iterdir()] == []
