"""Uploads on their way to disk."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from stores import Stores

from app.errors import InsufficientStorage
from app.jobs.intake import Intake
from app.jobs.job import OWNER, Job, JobRequest, JobState
from app.jobs.retention import remove_leftovers
from app.pipeline.options import DetectionOptions
from app.storage import spool as spool_module
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.ingest import Ingest
from app.storage.space import SpaceLedger
from app.storage.spool import Spool, Upload

MIB = 1024 * 1024


@pytest.fixture
def space(folder: DataFolder) -> SpaceLedger:
    """On a disk that nobody else writes to meanwhile."""
    return SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0, measure=lambda _: 1 << 40)


@pytest.fixture
def spool(folder: DataFolder, space: SpaceLedger) -> Spool:
    return Spool(folder, space)


def _accept(
    spool: Spool, folder: DataFolder, store: Stores, *pieces: bytes, expected_bytes: int | None = None
) -> Job:
    def receive(upload: Upload) -> str:
        for piece in pieces:
            upload.write(piece)
        return "clip.mp4"

    request = JobRequest(owner=OWNER, request_id="request", model="people", options=DetectionOptions())
    intake = Intake(folder, store, spool, Ingest(()))
    return intake.from_stream(request, receive, expected_bytes=expected_bytes or sum(map(len, pieces)))


def test_an_accepted_upload_is_the_jobs_video_with_its_size_and_digest(folder, spool, store):
    data = os.urandom(3 * MIB + 17)
    pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
    job = store.get(_accept(spool, folder, store, *pieces).id, owner=OWNER)
    assert folder.video(job.id).read_bytes() == data
    assert job.state is JobState.QUEUED
    assert job.source.size_bytes == len(data)
    assert job.source.sha256 == hashlib.sha256(data).hexdigest()
    assert job.source.name == "clip.mp4"
    assert not [*folder.incoming.iterdir()]


def test_an_upload_that_fails_leaves_nothing(folder, spool, space, store):
    before = space.available_bytes()

    def break_off() -> None:
        with spool.receive(new_job_id(), key="k", expected_bytes=10 * MIB) as upload:
            upload.write(b"x" * MIB)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        break_off()
    assert not [*folder.incoming.iterdir()]
    assert not [*folder.jobs.iterdir()]
    assert not store.queue.ids()
    assert abs(space.available_bytes() - before) < 5 * MIB


def test_disk_space_of_a_known_length_is_taken_before_the_first_byte(folder, spool):
    with spool.receive(new_job_id(), key="k", expected_bytes=64 * MIB) as upload:
        video = folder.incoming / upload.job_id / "video"
        assert video.stat().st_size == 0
        assert video.stat().st_blocks * 512 >= 64 * MIB


def test_space_beyond_the_video_is_given_back(folder, spool, store):
    job = _accept(spool, folder, store, b"y" * MIB, expected_bytes=8 * MIB)
    status = folder.video(job.id).stat()
    assert status.st_size == MIB
    assert status.st_blocks * 512 < 2 * MIB


def test_an_upload_larger_than_the_disk_is_refused_at_once(spool, folder):
    with pytest.raises(InsufficientStorage), spool.receive(new_job_id(), key="k", expected_bytes=1 << 55):
        pass
    assert not [*folder.incoming.iterdir()]


def test_an_upload_of_unknown_length_is_stopped_when_the_disk_runs_full(folder, monkeypatch):
    monkeypatch.setattr(spool_module, "SYNC_BYTES", MIB)
    left = [10 * MIB]
    space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0, measure=lambda _: left[0])

    def fill_the_disk() -> None:
        with Spool(folder, space).receive(new_job_id(), key="k", expected_bytes=None) as upload:
            while True:
                left[0] -= MIB
                upload.write(b"z" * MIB)

    with pytest.raises(InsufficientStorage):
        fill_the_disk()
    assert left[0] >= 0
    assert not [*folder.incoming.iterdir()]


def test_a_full_disk_during_a_write_is_told_as_such(spool, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with spool.receive(new_job_id(), key="k", expected_bytes=None) as upload:
        monkeypatch.setattr(os, "writev", full)
        with pytest.raises(InsufficientStorage) as caught:
            upload.write(b"x")
        monkeypatch.undo()
    assert isinstance(caught.value.__cause__, OSError)


def test_short_writes_are_completed(spool, folder, store, monkeypatch):
    real_write = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, data: real_write(descriptor, [data[0][:7]]))
    job = _accept(spool, folder, store, b"0123456789" * 5)
    assert folder.video(job.id).read_bytes() == b"0123456789" * 5


def test_a_file_system_without_allocation_keeps_the_promise_up(folder, spool, space, monkeypatch):
    monkeypatch.setattr(spool_module, "allocate", lambda *_: False)
    monkeypatch.setattr(spool_module, "SYNC_BYTES", MIB)
    free = space.available_bytes()
    with spool.receive(new_job_id(), key="k", expected_bytes=1 << 30) as upload:
        assert free - space.available_bytes() > (1 << 30) - 64 * MIB
        upload.write(b"x" * MIB)
        assert free - space.available_bytes() > (1 << 30) - 64 * MIB
    assert abs(space.available_bytes() - free) < 64 * MIB


def test_the_clean_up_takes_leftovers_and_leaves_uploads_under_way(folder, spool, store):
    abandoned, orphan = new_job_id(), new_job_id()
    (folder.incoming / abandoned).mkdir()
    (folder.incoming / abandoned / "video").write_bytes(b"half")
    (folder.jobs / orphan).mkdir()
    accepted = _accept(spool, folder, store, b"whole").id
    with spool.receive(new_job_id(), key="b", expected_bytes=None) as upload:
        upload.write(b"under way")
        assert remove_leftovers(folder, spool, store.queue) == 2
        assert [entry.name for entry in folder.incoming.iterdir()] == [upload.job_id]
        assert [entry.name for entry in folder.jobs.iterdir()] == [accepted]


def test_uploads_may_begin_while_a_clean_up_runs(folder, spool, store):
    done = threading.Event()

    def clean_up() -> None:
        while not done.is_set():
            spool.remove_leftovers()

    with ThreadPoolExecutor(2) as threads:
        cleaning = [threads.submit(clean_up) for _ in range(2)]
        try:
            for _ in range(300):
                with spool.receive(new_job_id(), key="k", expected_bytes=None) as upload:
                    upload.write(b"video")
                    upload.finish()
                    spool.publish(upload)
                assert folder.video(upload.job_id).read_bytes() == b"video"
        finally:
            done.set()
        assert not any(future.exception() for future in cleaning)


def test_a_published_upload_without_a_record_is_no_leftover_while_its_receiver_lives(folder, spool, store):
    with spool.receive(new_job_id(), key="k", expected_bytes=None) as upload:
        upload.write(b"video")
        upload.finish()
        spool.publish(upload)
        assert remove_leftovers(folder, spool, store.queue) == 0
        assert folder.video(upload.job_id).exists()
    assert remove_leftovers(folder, spool, store.queue) == 1
    assert not folder.job(upload.job_id).exists()


def test_a_record_that_cannot_be_written_leaves_no_folder(folder, spool, store, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("database is gone")

    monkeypatch.setattr(store, "add", broken)

    with pytest.raises(RuntimeError, match="gone"):
        _accept(spool, folder, store, b"video")
    assert not [*folder.jobs.iterdir()]
    assert not [*folder.incoming.iterdir()]


def test_what_a_killed_process_was_receiving_is_a_leftover(folder, spool, store):
    script = """
import os, sys
from pathlib import Path
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.ingest import Ingest
from app.storage.space import SpaceLedger
from app.storage.spool import Spool
folder = DataFolder(Path(sys.argv[1]))
space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)
with Spool(folder, space).receive(new_job_id(), key="k", expected_bytes=None) as upload:
    upload.write(b"half")
    print("receiving", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(folder.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"receiving\n"
        assert remove_leftovers(folder, spool, store.queue) == 0
        process.kill()
        process.wait(timeout=10)
    assert remove_leftovers(folder, spool, store.queue) == 1
    assert not [*folder.incoming.iterdir()]
