"""Jobs that ended are kept for so long, and as long as there is room; others are never touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import Stores

from app.jobs.job import OWNER, JobRequest, JobState, VideoSource
from app.jobs.retention import FETCH_SECONDS, Retention, RetentionLimits
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.space import SpaceLedger
from app.storage.uploads import UploadLimits, Uploads

DAY = 86400.0
RESULT_BYTES = 100


@dataclass
class Disk:
    """A disk on which nothing but the jobs' results takes room."""

    folder: DataFolder
    size_bytes: int = 10**9

    def __call__(self, _: Path) -> int:
        return self.size_bytes - sum(path.stat().st_size for path in self.folder.jobs.rglob("result.*"))


@pytest.fixture
def disk(folder: DataFolder) -> Disk:
    return Disk(folder)


def retention(folder: DataFolder, store: Stores, disk: Disk, *, now: float, free: int = 0) -> Retention:
    limits = RetentionLimits(keep_seconds=10 * DAY, keep_free_bytes=free)
    space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)
    uploads = Uploads(folder.uploads, space, UploadLimits(keep_seconds=DAY, max_open=10), clock=lambda: now)
    return Retention(folder, store.queue, limits, uploads, measure=disk, clock=lambda: now)


def add(folder: DataFolder, store: Stores, *, ended_at: float | None) -> str:
    """A job that ended then; with None one that waits or runs."""
    job_id = new_job_id()
    request = JobRequest(
        owner=OWNER, request_id="r", model="none", options=DetectionOptions(stride=len(store.queue.ids()) + 1)
    )
    folder.job(job_id).mkdir()
    store.add(job_id, request, VideoSource(1, "a" * 64, None))
    folder.result(job_id, "pairs").write_bytes(bytes(RESULT_BYTES))
    if ended_at is not None:
        store.request_cancel(job_id, owner=OWNER)
        with store.database.transaction() as connection:
            connection.execute("UPDATE jobs SET finished_at = ? WHERE id = ?", (ended_at, job_id))
    return job_id


def test_jobs_that_are_too_old_go_with_their_files(folder: DataFolder, store: Stores, disk: Disk) -> None:
    old, young = add(folder, store, ended_at=0.0), add(folder, store, ended_at=5 * DAY)
    assert retention(folder, store, disk, now=11 * DAY).remove_old() == 1
    assert store.queue.ids() == {young}
    assert not folder.job(old).exists()
    assert folder.job(young).exists()


def test_jobs_that_wait_or_run_are_kept_however_full_the_disk(
    folder: DataFolder, store: Stores, disk: Disk
) -> None:
    running = add(folder, store, ended_at=None)
    store.queue.claim(store.queue.begin_epoch(pid=1))
    queued = add(folder, store, ended_at=None)
    assert retention(folder, store, disk, now=1e10, free=10**10).remove_old() == 0
    assert store.queue.ids() == {running, queued}
    assert store.get(running, owner=OWNER).state is JobState.RUNNING


def test_without_room_the_oldest_go_first_and_no_more_than_needed(
    folder: DataFolder, store: Stores, disk: Disk
) -> None:
    ids = [add(folder, store, ended_at=number * 1000.0) for number in (3, 1, 2, 4)]
    free = disk(folder.root) + 2 * RESULT_BYTES
    assert retention(folder, store, disk, now=DAY, free=free).remove_old() == 2
    assert store.queue.ids() == {ids[0], ids[3]}


def test_an_answer_can_be_fetched_for_a_while_however_full_the_disk(
    folder: DataFolder, store: Stores, disk: Disk
) -> None:
    add(folder, store, ended_at=1000.0)
    assert retention(folder, store, disk, now=1000.0 + FETCH_SECONDS - 1, free=10**10).remove_old() == 0
    assert retention(folder, store, disk, now=1000.0 + FETCH_SECONDS + 1, free=10**10).remove_old() == 1


def test_a_job_that_is_given_again_is_kept_as_long_as_a_new_one(
    folder: DataFolder, store: Stores, disk: Disk
) -> None:
    job_id = add(folder, store, ended_at=0.0)
    with store.database.transaction() as connection:
        connection.execute("UPDATE jobs SET used_at = ?", (9 * DAY,))
    assert retention(folder, store, disk, now=11 * DAY).remove_old() == 0
    assert retention(folder, store, disk, now=20 * DAY).remove_old() == 1
    assert job_id not in store.queue.ids()


def test_many_old_jobs_go_a_few_at_a_time(folder: DataFolder, store: Stores, disk: Disk) -> None:
    for _ in range(25):
        add(folder, store, ended_at=0.0)
    tidy = retention(folder, store, disk, now=11 * DAY)
    assert [tidy.remove_old(), tidy.remove_old(), tidy.remove_old()] == [20, 5, 0]
    assert [*folder.jobs.iterdir()] == []
