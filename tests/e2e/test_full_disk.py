"""A disk that runs full stops jobs, and loses none: they say so, wait, and go on when there is room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from instance import CHECKOUT, Instance, repeat_clip

OPTIONS = {"model": "hog-people", "max_side": 320}
SMALL = {"model": "hog-people", "max_side": 240}
WALKERS = CHECKOUT / "docs" / "walkers.mp4"  # 96 frames
DISK_BYTES = 48 * 1024 * 1024


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 48 MiB of its own. Skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if mounted.returncode != 0:
        reason = f"cannot mount a small file system: {mounted.stderr.strip()}"
        if os.environ.get("FRAMEBOX_REQUIRE_NAMESPACES", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=30, check=True)


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance on a small disk that it may fill to the last byte."""
    settings = {"segment_frames": 24, "min_free_bytes": 0, "keep_free_bytes": 0}
    folder = tmp_path_factory.mktemp("cramped") / "data"  # its log lies beside it
    with small_disk(folder), Instance(folder, **settings) as instance:
        yield instance


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """384 frames with walkers that the detector finds."""
    return repeat_clip(CHECKOUT / "docs" / "walkers.mp4", tmp_path_factory.mktemp("c") / "v.mp4", times=4)


class Filler:
    """Takes every byte that the disk has left, and gives it back."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "filler"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            for size in (1024 * 1024, 4096, 1):
                while _writes(file.fileno(), size):
                    pass

    def remove(self) -> None:
        self._path.unlink()


def _writes(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, bytes(size)) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@pytest.fixture(scope="module")
def undisturbed(cramped: Instance, video: Path) -> bytes:
    return cramped.post(video, **SMALL).content


@pytest.mark.parametrize("program", ["engine", "host"])
def test_a_job_waits_for_room_and_then_gives_the_same_bytes(
    cramped: Instance, video: Path, undisturbed: bytes, program: str
) -> None:
    """Although a program dies while there is none."""
    instance = cramped
    filler = Filler(instance.data)
    job_id = instance.post_async(video, **SMALL)
    parts = instance.data / "jobs" / job_id / "parts"
    instance.wait(lambda: len(list(parts.glob("*.part"))) >= 2, 60, "two parts")
    filler.fill()
    instance.wait(lambda: instance.report(job_id)["waiting"] == "disk_space", 60, "a waiting job")
    report = instance.report(job_id)
    assert (report["state"], report["problem"]) == ("queued", None)
    filler.fill()  # what the service had held back for its records
    refused = instance.post(video, **SMALL)
    assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
    done = {path.name: path.stat().st_ino for path in parts.glob("*.part")}
    killed = instance.engine() if program == "engine" else instance.host()
    killed.kill()
    instance.wait(lambda: not killed.is_running(), 30, "the end of it")
    if program == "host":
        instance.wait(instance.hosts, 60, "another host, on a full disk")
    filler.remove()
    report = instance.wait_for_end(job_id)
    assert (report["state"], report["waiting"]) == ("succeeded", None)
    assert instance.result(job_id) == undisturbed
    assert done
    left = sorted(path.name for path in (instance.data / "jobs" / job_id).iterdir())
    assert left == ["result.pairs", "result.pts"]
    assert requests.get(f"{instance.url}/readyz", timeout=30).status_code == 200


def test_below_the_minimum_jobs_wait_before_they_begin(tmp_path: Path, video: Path) -> None:
    limit = 16 * 1024 * 1024
    settings = {"model": "none", "segment_frames": 100, "min_free_bytes": limit, "keep_free_bytes": 0}
    with small_disk(tmp_path / "data") as disk, Instance(disk, **settings) as instance:
        engine = instance.engine()
        engine.suspend()
        job_id = instance.post_async(video, model="none")
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler.write_bytes(bytes(free - limit // 2))
        engine.resume()
        instance.wait(lambda: instance.report(job_id)["waiting"] == "disk_space", 60, "a waiting job")
        filler.unlink()
        assert instance.wait_for_end(job_id)["state"] == "succeeded"


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance on a disk with room enough; some calls of its programs are made to fail."""
    with Instance(tmp_path_factory.mktemp("roomy") / "data", segment_frames=24) as instance:
        yield instance


@pytest.fixture(scope="module")
def walkers_answer(roomy: Instance) -> bytes:
    return roomy.post(WALKERS, **OPTIONS).content


def begin(instance: Instance) -> str:
    job_id = instance.post_async(WALKERS, **OPTIONS)
    instance.wait(lambda: instance.report(job_id)["state"] == "running", 60, "a running job")
    return job_id


def assert_equal_and_each_segment_once(instance: Instance, job_id: str, undisturbed: bytes) -> None:
    assert instance.wait_for_end(job_id)["state"] == "succeeded"
    assert instance.result(job_id) == undisturbed
    lines = instance.log.read_text().splitlines()
    finished = sum('"segment finished"' in line and job_id in line for line in lines)
    assert finished == instance.report(job_id)["progress"]["segments_total"]


def test_a_part_waits_for_room(roomy: Instance, walkers_answer: bytes) -> None:
    job_id = begin(roomy)
    with no_room(roomy.host().pid, "fsync,fdatasync"):  # what makes a part durable
        roomy.wait(lambda: roomy.report(job_id)["waiting"] == "disk_space", 120, "a waiting job")
        assert roomy.is_ready()
    assert roomy.wait_for_end(job_id)["state"] == "succeeded"
    assert roomy.result(job_id) == walkers_answer


def test_a_document_waits_for_room_and_no_segment_is_done_again(
    roomy: Instance, walkers_answer: bytes
) -> None:
    job_id = begin(roomy)
    with no_room(roomy.engine().pid, "copy_file_range"):  # what joins the parts
        roomy.wait(lambda: roomy.report(job_id)["waiting"] == "disk_space", 120, "a waiting job")
        assert [path.name for path in (roomy.data / "jobs" / job_id).glob("*result*")] == []
    assert_equal_and_each_segment_once(roomy, job_id, walkers_answer)


def test_a_job_waits_for_room_in_the_database(roomy: Instance, walkers_answer: bytes) -> None:
    job_id = begin(roomy)
    with no_room(roomy.engine().pid, "pwrite64", roomy.data / "framebox.sqlite3-wal"):
        told = "no room on disk for the jobs' records"
        roomy.wait(lambda: told in roomy.log.read_text(), 120, "an engine that waits")
        assert roomy.report(job_id)["state"] == "running"
    assert_equal_and_each_segment_once(roomy, job_id, walkers_answer)


@contextmanager
def no_room(pid: int, call: str, file: Path | None = None) -> Iterator[None]:
    """Let a system call of a process, on one file or any, fail with ENOSPC."""
    on_file = [] if file is None else ["-P", str(file)]
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error=ENOSPC", *on_file]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, "-p", str(pid)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as tracer:
        try:
            yield
        finally:
            tracer.terminate()
            tracer.wait(30)
