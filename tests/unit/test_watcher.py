"""Waiting for jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from stores import Stores

from app.errors import JobNotFound
from app.jobs.job import OWNER, Job, JobRequest, JobState, Progress, VideoSource
from app.jobs.watcher import JobWatcher
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import DataFolder, new_job_id
from app.wakeups import Wakeups
from app.web.waiting import wait_for_end

WAIT_SECONDS = 10.0


@pytest.fixture
def watcher(store: Stores, wakeups: Wakeups) -> Iterator[JobWatcher]:
    watcher = JobWatcher(
        store.database, wakeups, poll_seconds=10 * WAIT_SECONDS
    )  # all that comes, comes by waking
    yield watcher
    watcher.close()


def _add(store: Stores) -> Job:
    request = JobRequest(owner=OWNER, request_id="r", model="people", options=DetectionOptions())
    return store.add(new_job_id(), request, VideoSource(1, "0" * 64, None))


def test_the_first_look_shows_the_job_as_it_is(store: Stores, watcher: JobWatcher):
    job = _add(store)
    with watcher.watch(job.id, owner=OWNER) as watch:
        assert watch.next_change(WAIT_SECONDS) == job


def test_a_change_made_by_another_connection_wakes_who_waits(store: Stores, watcher: JobWatcher):
    job, epoch = _add(store), store.queue.begin_epoch(pid=1)
    with watcher.watch(job.id, owner=OWNER) as watch:
        watch.next_change(WAIT_SECONDS)
        store.queue.claim(epoch)
        store.queue.update(job.id, epoch, Progress(5, 10, 1, 2))
        states: list[Job] = []
        while not states or states[-1].progress.frames_done < 5:
            changed = watch.next_change(WAIT_SECONDS)
            assert changed is not None
            states.append(changed)
    assert states[-1].state is JobState.RUNNING


def test_without_a_change_the_wait_ends_in_time(store: Stores, watcher: JobWatcher):
    job = _add(store)
    with watcher.watch(job.id, owner=OWNER) as watch:
        watch.next_change(WAIT_SECONDS)
        _add(store)  # another job's change is none of ours
        assert watch.next_change(0.1) is None


def test_a_job_that_is_gone_is_told(store: Stores, watcher: JobWatcher):
    job = _add(store)
    with watcher.watch(job.id, owner=OWNER) as watch:
        watch.next_change(WAIT_SECONDS)
        store.request_cancel(job.id, owner=OWNER)
        store.delete(job.id, owner=OWNER)

        def until_gone() -> None:
            while True:
                assert watch.next_change(WAIT_SECONDS) is not None

        with pytest.raises(JobNotFound):
            until_gone()


def test_many_wait_with_one_thread(store: Stores, watcher: JobWatcher):
    jobs, epoch = [_add(store) for _ in range(20)], store.queue.begin_epoch(pid=1)
    before = threading.active_count()

    def end_of(job: Job) -> Job:
        return wait_for_end(watcher, job, seconds=WAIT_SECONDS, is_abandoned=lambda: False)

    with ThreadPoolExecutor(len(jobs)) as threads:
        waiting = [threads.submit(end_of, job) for job in jobs]
        while (claimed := store.queue.claim(epoch)) is not None:
            store.queue.finish(claimed.id, epoch, JobState.SUCCEEDED)
        assert {future.result().state for future in waiting} == {JobState.SUCCEEDED}
        assert threading.active_count() <= before + len(jobs) + 1
    assert [thread.name for thread in threading.enumerate()].count("job-watcher") == 1


def test_a_wait_ends_at_its_deadline_with_the_job_as_it_is(store: Stores, watcher: JobWatcher):
    began = time.monotonic()
    job = wait_for_end(watcher, _add(store), seconds=0.2, is_abandoned=lambda: False)
    assert job.state is JobState.QUEUED
    assert 0.2 <= time.monotonic() - began < 5


def test_a_wait_ends_when_nobody_waits_any_more(store: Stores, watcher: JobWatcher):
    job = wait_for_end(watcher, _add(store), seconds=None, is_abandoned=lambda: True)
    assert job.state is JobState.QUEUED


def test_a_closed_watcher_leaves_no_thread(store: Stores, wakeups: Wakeups):
    watcher = JobWatcher(store.database, wakeups)
    with watcher.watch(_add(store).id, owner=OWNER) as watch:
        watch.next_change(WAIT_SECONDS)
    watcher.close()
    assert "job-watcher" not in [thread.name for thread in threading.enumerate()]


def test_a_change_whose_wake_up_was_lost_is_seen_by_and_by(
    folder: DataFolder, store: Stores, wakeups: Wakeups
):
    job, silent = _add(store), Stores(folder.database)
    watcher = JobWatcher(store.database, wakeups, poll_seconds=0.05)
    try:
        with watcher.watch(job.id, owner=OWNER) as watch:
            watch.next_change(WAIT_SECONDS)
            silent.request_cancel(job.id, owner=OWNER)
            changed = watch.next_change(WAIT_SECONDS)
            assert changed is not None
            assert changed.state is JobState.CANCELLED
    finally:
        watcher.close()
        silent.database.close()


def test_whoever_comes_later_is_shown_the_job_at_once(store: Stores, watcher: JobWatcher):
    with watcher.watch(_add(store).id, owner=OWNER) as earlier:
        earlier.next_change(WAIT_SECONDS)
        later_job = _add(store)
        with watcher.watch(later_job.id, owner=OWNER) as later:
            assert later.next_change(WAIT_SECONDS) == later_job
