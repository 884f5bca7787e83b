"""A power cut loses no job that was acknowledged, no end that was told, and no byte of an upload that was."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest
from crash_disk import CrashDisk, NoSuchDisk
from instance import CHECKOUT, Instance, repeat_clip

from app.jobs.job import OWNER
from app.storage.data_folder import DataFolder
from app.storage.space import SpaceLedger
from app.storage.uploads import About, UploadLimits, Uploads

OPTIONS = {"model": "hog-people", "max_side": 240}
SYNC_FILE_RANGE_WRITE = 2  # sync_file_range(2): begin, and do not wait
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


def test_a_power_cut_loses_nothing_that_was_told(disk: CrashDisk, tmp_path: Path) -> None:
    walkers = CHECKOUT / "docs" / "walkers.mp4"  # one segment; two end at once, and the document follows
    video = repeat_clip(walkers, tmp_path / "walkers.mp4", times=3)
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
            files = sorted(path.name for path in (instance.data / "jobs" / job_id).iterdir())
            assert files == ["result.pairs", "result.pts"]
        assert [*(instance.data / "incoming").iterdir()] == []


def test_a_power_cut_leaves_an_upload_that_can_be_gone_on_with(disk: CrashDisk) -> None:
    """Its offset counts bytes that are there, and all those that were acknowledged."""
    data = random.Random(5).randbytes(40_000_000)
    folder = DataFolder(disk.root / "data")
    folder.create()
    sender = Sender(_uploads(folder, boot_id="1"), data)
    cuts = []
    video = folder.uploads / sender.upload_id / "video"
    with sender, _busy_kernel(disk.root, video):
        for number in range(8):
            sender.wait_for_bytes((number + 1) * len(data) // 10)
            acknowledged = sender.acknowledged_bytes
            cuts.append((disk.cut(f"cut-{number}"), acknowledged))
    for copy, acknowledged in cuts:
        with disk.after(copy) as root:
            left = DataFolder(root / "data")
            uploads = _uploads(left, boot_id="2")
            uploads.recover()
            offset = uploads.look(sender.upload_id, owner=OWNER).offset_bytes
            assert offset >= acknowledged
            assert (left.uploads / sender.upload_id / "video").read_bytes() == data[:offset]
            with uploads.hold(sender.upload_id, owner=OWNER) as held:
                assert held.sha256() == hashlib.sha256(data[:offset]).hexdigest()


def _uploads(folder: DataFolder, *, boot_id: str) -> Uploads:
    space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)
    return Uploads(
        folder.uploads, space, UploadLimits(keep_seconds=3600, max_open=5), boot_id=lambda: boot_id
    )


class Sender:
    """Sends an upload in a thread, in requests and pieces of random sizes."""

    def __init__(self, uploads: Uploads, data: bytes) -> None:
        self.acknowledged_bytes = 0
        self.upload_id = uploads.create(About(OWNER, len(data)), key="k")
        self._uploads = uploads
        self._data = data
        self._sent_bytes = 0
        self._thread = threading.Thread(target=self._send, name="sender")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def wait_for_bytes(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self._sent_bytes < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _send(self) -> None:
        random_ = random.Random(6)
        while self.acknowledged_bytes < len(self._data):
            length = random_.choice((1, 700, 5_000, 300_000, 3_000_000))
            with self._uploads.hold(self.upload_id, owner=OWNER) as held:
                pieces = self._pieces(self.acknowledged_bytes, length, random_)
                held.append(pieces, None, on_takeover=lambda: None)
                self.acknowledged_bytes = held.facts().offset_bytes

    def _pieces(self, start: int, length: int, random_: random.Random) -> Iterator[bytes]:
        end = min(len(self._data), start + length)
        while start < end:
            piece = self._data[start : min(end, start + random_.choice((300, 4096, 70_000, 262_144)))]
            yield piece
            start += len(piece)
            self._sent_bytes = start


@contextmanager
def _busy_kernel(root: Path, video: Path) -> Iterator[None]:
    """Has the kernel begin to write the video's pages, and commit its journal, at any time."""
    enough, libc = threading.Event(), ctypes.CDLL(None, use_errno=True)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def write_back() -> None:
        with video.open("rb") as file:
            while not enough.is_set():
                libc.sync_file_range(file.fileno(), 0, 0, SYNC_FILE_RANGE_WRITE)

    def commit() -> None:
        with (root / "other").open("wb", buffering=0) as file:
            while not enough.is_set():
                file.write(b"x")
                os.fsync(file.fileno())

    threads = [threading.Thread(target=work, name=work.__name__) for work in (write_back, commit)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(60)
