"""A cancelled job is gone with all that it held, at whatever it was when it was cancelled."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import requests
from instance import CHECKOUT, Instance, repeat_clip

from app.settings import READY_CHILDREN


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1920 frames with walkers: enough for a minute."""
    return repeat_clip(CHECKOUT / "docs" / "walkers.mp4", tmp_path_factory.mktemp("c") / "v.mp4", times=20)


def rings(host: psutil.Process) -> int:
    """How many decoders' memories the host still has, a hundred mebibytes each."""
    found = 0
    for descriptor in Path(f"/proc/{host.pid}/fd").iterdir():
        try:
            found += "memfd:frames" in str(descriptor.readlink())
        except FileNotFoundError:
            continue
    return found


def test_cancelled_jobs_leave_no_memory_no_child_and_no_file(
    shared_instance: Instance, long_video: Path
) -> None:
    instance = shared_instance
    engine, host = instance.engine(), instance.host()
    for parts_before in (0, 0, 1, 1):
        job_id = instance.post_async(long_video, model="hog-people", max_side=240)
        parts = instance.data / "jobs" / job_id / "parts"
        instance.wait(lambda: instance.report(job_id)["state"] == "running", 60, "a running job")  # noqa: B023
        instance.wait(lambda: len(list(parts.glob("*.part"))) >= parts_before, 60, "parts")  # noqa: B023
        instance.wait(instance.decoders, 60, "a decoder child")
        assert requests.delete(f"{instance.url}/v1/jobs/{job_id}", timeout=30).status_code == 202
        assert instance.wait_for_end(job_id)["state"] == "cancelled"
        instance.wait(lambda: not [*parts.parent.iterdir()], 30, "no files")  # noqa: B023
    instance.wait(lambda: not instance.decoders(), 30, "no decoder children")
    instance.wait(lambda: rings(host) == READY_CHILDREN, 30, "no other decoder's memory in the host")
    assert (instance.engine(), instance.host()) == (engine, host)
