"""A job's record: states change once, in one direction, and only by whom they belong to."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
from sample_reports import (
    SANDBOX,
    completeness,
    finished_report,
    loading_model,
    ready_model,
    refused_model,
)
from stores import Stores

from app.errors import JobIsActive, JobNotFound
from app.jobs.database import SCHEMA_VERSION
from app.jobs.heartbeats import HostStatus
from app.jobs.job import (
    OWNER,
    Advance,
    Callback,
    JobRequest,
    JobState,
    Priority,
    Progress,
    SourceKind,
    VideoSource,
    Waiting,
)
from app.jobs.queue import Claim, LeaseLost
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.space import is_disk_full
from app.wakeups import Program, Wakeups

SOURCE = VideoSource(123, "ab" * 32, "clip.mp4")
HOST = HostStatus(
    device="cuda:0",
    pid=7,
    ready=True,
    memory_bytes=2_000_000_000,
    segments=2,
    frames=1234,
    busy_seconds=5.5,
    out_of_memory_count=1,
    model_fault_count=0,
    dropped_box_count=3,
    restarts=1,
)


def add(store: Stores) -> str:
    options = DetectionOptions(min_score=0.5, labels=("person",))
    request = JobRequest(owner=OWNER, request_id="request", model="none", options=options)
    return store.add(new_job_id(), request, SOURCE).id


def test_a_job_reads_back_as_it_was_added(store: Stores) -> None:
    job = store.get(add(store), owner=OWNER)
    assert job.state is JobState.QUEUED
    assert job.options == DetectionOptions(min_score=0.5, labels=("person",))
    assert job.source == VideoSource(123, "ab" * 32, "clip.mp4")
    assert job.progress == Progress()


def test_jobs_are_claimed_in_order_and_once(store: Stores) -> None:
    ids = [add(store) for _ in range(3)]
    epoch = store.queue.begin_epoch(pid=1)
    claimed = [store.queue.claim(epoch) for _ in range(4)]
    assert [job and job.id for job in claimed] == [*ids, None]


def test_many_threads_never_claim_the_same_job(store: Stores) -> None:
    ids = {add(store) for _ in range(40)}
    epoch = store.queue.begin_epoch(pid=1)
    claimed: list[str] = []

    def claim_all() -> None:
        while (job := store.queue.claim(epoch)) is not None:
            claimed.append(job.id)
        store.database.close()

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claimed) == len(ids)
    assert set(claimed) == ids


def test_a_new_engine_takes_over_what_the_old_one_was_running(store: Stores) -> None:
    job_id = add(store)
    old = store.queue.begin_epoch(pid=1)
    store.queue.claim(old)
    new = store.queue.begin_epoch(pid=2)
    assert store.get(job_id, owner=OWNER).state is JobState.QUEUED
    job = store.queue.claim(new)
    assert job is not None
    assert job.id == job_id


def test_an_old_engine_can_no_longer_write(store: Stores) -> None:
    job_id = add(store)
    old = store.queue.begin_epoch(pid=1)
    store.queue.claim(old)
    new = store.queue.begin_epoch(pid=2)
    store.queue.claim(new)
    for write in (
        lambda: store.queue.update(job_id, old, Progress(frames_done=9)),
        lambda: store.queue.finish(job_id, old, JobState.SUCCEEDED),
        lambda: store.queue.put_back(job_id, old),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.get(job_id, owner=OWNER).state is JobState.RUNNING


def test_final_states_stay(store: Stores) -> None:
    job_id = add(store)
    epoch = store.queue.begin_epoch(pid=1)
    store.queue.claim(epoch)
    store.queue.finish(job_id, epoch, JobState.SUCCEEDED, progress=Progress(5, 5, 1, 1))
    with pytest.raises(LeaseLost):
        store.queue.finish(job_id, epoch, JobState.FAILED)
    job = store.request_cancel(job_id, owner=OWNER)
    assert job.state is JobState.SUCCEEDED
    assert not job.cancel_requested
    assert job.progress == Progress(5, 5, 1, 1)
    store.queue.begin_epoch(pid=2)
    assert store.get(job_id, owner=OWNER).state is JobState.SUCCEEDED


def test_cancelling_ends_a_queued_job_and_asks_for_a_running_ones_end(store: Stores) -> None:
    running, queued = add(store), add(store)
    epoch = store.queue.begin_epoch(pid=1)
    store.queue.claim(epoch)
    assert store.request_cancel(queued, owner=OWNER).state is JobState.CANCELLED
    assert store.request_cancel(running, owner=OWNER).state is JobState.RUNNING
    assert store.queue.cancel_requests(epoch) == {running}


def test_only_a_job_that_has_ended_can_be_deleted(store: Stores) -> None:
    job_id = add(store)
    with pytest.raises(JobIsActive):
        store.delete(job_id, owner=OWNER)
    store.request_cancel(job_id, owner=OWNER)
    store.delete(job_id, owner=OWNER)
    with pytest.raises(JobNotFound):
        store.get(job_id, owner=OWNER)


def test_the_list_is_newest_first_and_goes_on_from_a_cursor(store: Stores) -> None:
    ids = [add(store) for _ in range(5)]
    first = store.list(limit=2, owner=OWNER)
    assert [job.id for job in first] == [ids[4], ids[3]]
    assert [job.id for job in store.list(limit=10, before=first[-1].id, owner=OWNER)] == [
        ids[2],
        ids[1],
        ids[0],
    ]
    store.request_cancel(ids[2], owner=OWNER)
    assert [job.id for job in store.list(state=JobState.CANCELLED, owner=OWNER)] == [ids[2]]


def test_the_data_version_tells_of_other_connections_changes(store: Stores, folder: DataFolder) -> None:
    before = store.database.version()
    other = Stores(folder.database)
    add(other)
    other.database.close()
    assert store.database.version() != before


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 8])
def test_a_folder_of_another_release_is_refused(store: Stores, folder: DataFolder, version: int) -> None:
    with sqlite3.connect(folder.database) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(
        RuntimeError, match=f"version {version}, and this release reads only version {SCHEMA_VERSION}"
    ):
        store.database.create()


def test_a_report_reads_back_as_it_was_written(store: Stores) -> None:
    job_id = add(store)
    epoch = store.queue.begin_epoch(pid=1)
    store.queue.claim(epoch)
    whole = finished_report(123, "cd" * 32, found=completeness(100, missing=3))
    early = DetectionReport(model=whole.model, video=whole.video)
    assert store.get(job_id, owner=OWNER).report is None
    for report in (early, whole):
        store.queue.update(job_id, epoch, Progress(5, 5, 1, 1), report)
        assert store.get(job_id, owner=OWNER).report == report
    store.queue.update(job_id, epoch, Progress(6, 6, 1, 1))
    store.queue.finish(job_id, epoch, JobState.SUCCEEDED)
    assert store.get(job_id, owner=OWNER).report == whole


def add_with(store: Stores, priority: Priority) -> str:
    request = JobRequest(
        owner=OWNER, request_id="r", model="none", options=DetectionOptions(), priority=priority
    )
    return store.add(new_job_id(), request, SOURCE).id


def test_interactive_jobs_are_claimed_first_and_in_order(store: Stores) -> None:
    order = (Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH, Priority.INTERACTIVE)
    ids = [add_with(store, priority) for priority in order]
    epoch = store.queue.begin_epoch(pid=1)
    claimed = [store.queue.claim(epoch) for _ in range(5)]
    assert [job and job.id for job in claimed] == [ids[1], ids[3], ids[0], ids[2], None]


def test_the_engine_says_whose_turn_it_is(store: Stores) -> None:
    batch, interactive = add_with(store, Priority.BATCH), add_with(store, Priority.INTERACTIVE)
    epoch = store.queue.begin_epoch(pid=1)
    claimed = store.queue.claim(epoch, Claim((Priority.BATCH, Priority.INTERACTIVE)))
    assert claimed is not None
    assert claimed.id == batch
    add_with(store, Priority.BATCH)
    claimed = store.queue.claim(epoch, Claim((Priority.INTERACTIVE,)))
    assert claimed is not None
    assert claimed.id == interactive
    assert store.queue.claim(epoch, Claim((Priority.INTERACTIVE,))) is None


def test_queued_jobs_tell_what_they_wait_for_until_they_are_taken_up(store: Stores) -> None:
    first, second, cancelled = add(store), add(store), add(store)
    epoch = store.queue.begin_epoch(pid=1)
    store.queue.claim(epoch)
    store.queue.put_back(first, epoch, Waiting.DISK_SPACE)
    assert store.get(first, owner=OWNER).waiting is Waiting.DISK_SPACE
    assert store.get(second, owner=OWNER).waiting is None
    store.queue.say_waiting(Waiting.DISK_SPACE)
    assert store.get(second, owner=OWNER).waiting is Waiting.DISK_SPACE
    assert store.request_cancel(cancelled, owner=OWNER).waiting is None
    job = store.queue.claim(epoch)
    assert job is not None
    assert (job.id, job.waiting) == (first, None)
    store.queue.say_waiting(None)
    assert store.get(second, owner=OWNER).waiting is None


def test_jobs_for_models_without_room_are_passed_over_and_say_so(store: Stores) -> None:
    epoch = store.queue.begin_epoch(pid=1)
    large, small = new_job_id(), new_job_id()
    for job_id, model in ((large, "large"), (small, "small")):
        store.add(
            job_id, JobRequest(OWNER, "request", model, DetectionOptions()), VideoSource(1, "0" * 64, None)
        )
    claimed = store.queue.claim(epoch, Claim(without_models=["large"]))
    assert claimed is not None
    assert claimed.id == small
    assert store.queue.claim(epoch, Claim(without_models=["large"])) is None
    store.queue.say_waiting(None, crowded_models=["large"])
    assert store.get(large, owner=OWNER).waiting is Waiting.MODEL_MEMORY
    store.queue.say_waiting(None)
    assert store.get(large, owner=OWNER).waiting is None
    claimed = store.queue.claim(epoch)
    assert claimed is not None
    assert claimed.id == large


def test_what_the_engine_says_of_itself_reads_back_and_stays_until_it_says_otherwise(store: Stores) -> None:
    before = store.heartbeats.engine()
    assert (before.models, before.hosts, before.sandbox) == ((), (), None)
    epoch = store.queue.begin_epoch(pid=1)
    models = (ready_model("a", "cat"), loading_model("b"), refused_model("c"))
    store.heartbeats.report_engine(epoch, ready=True, models=models, hosts=[HOST], sandbox=SANDBOX)
    store.heartbeats.report_engine(epoch, ready=False)
    status = store.heartbeats.engine()
    assert (status.ready, status.models, status.hosts, status.sandbox) == (False, models, (HOST,), SANDBOX)
    store.heartbeats.report_engine(epoch, ready=True, hosts=[])
    assert (store.heartbeats.engine().models, store.heartbeats.engine().hosts) == (models, ())


def add_many(store: Stores, count: int) -> None:
    for _ in range(count):
        add(store)


def test_a_database_without_room_changes_nothing_and_goes_on_when_there_is(store: Stores) -> None:
    job_id = add(store)
    connection = store.database._connect()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error) as caught:
        add_many(store, 10_000)
    assert is_disk_full(caught.value)
    assert store.get(job_id, owner=OWNER).state is JobState.QUEUED
    connection.execute("PRAGMA max_page_count = 100000")
    assert add(store) in store.queue.ids()


def advance(seconds_left: float | None = None, *, reached: int = 0, total: int | None = None) -> Advance:
    return Advance(reached, total, None if total is None else 2, seconds_left)


def test_frames_of_unfinished_segments_are_written_down_for_the_time_of_the_run(store: Stores) -> None:
    job_id = add(store)
    epoch = store.queue.begin_epoch(pid=1)
    store.queue.claim(epoch)
    store.queue.report_progress(epoch, {job_id: advance(reached=7)})
    assert store.get(job_id, owner=OWNER).progress == Progress(frames_reached=7)
    store.queue.report_progress(epoch, {job_id: advance(reached=8, total=20)})
    assert store.get(job_id, owner=OWNER).progress == Progress(0, 20, 0, 2, frames_reached=8)
    store.queue.update(job_id, epoch, Progress(10, 20, 1, 2))
    store.queue.report_progress(epoch, {job_id: advance(reached=12)})
    assert store.get(job_id, owner=OWNER).progress == Progress(10, 20, 1, 2, frames_reached=12)
    store.queue.claim(store.queue.begin_epoch(pid=2))
    assert store.get(job_id, owner=OWNER).progress == Progress(10, 20, 1, 2)


def test_an_estimate_lasts_as_long_as_the_run_that_it_was_made_in(store: Stores) -> None:
    job_id = add(store)
    epoch = store.queue.begin_epoch(pid=1)
    store.queue.report_progress(epoch, {job_id: advance(5.0)})
    assert store.get(job_id, owner=OWNER).estimate is None  # not running yet
    store.queue.claim(epoch)
    store.queue.report_progress(epoch, {job_id: advance(42.0)})
    estimate = store.get(job_id, owner=OWNER).estimate
    assert estimate is not None
    assert estimate.seconds_left == 42.0
    assert estimate.made_at == pytest.approx(time.time(), abs=5)
    store.queue.report_progress(epoch + 1, {job_id: advance(1.0)})  # not that engine's job
    assert store.get(job_id, owner=OWNER).estimate == estimate
    store.queue.claim(store.queue.begin_epoch(pid=2))
    assert store.get(job_id, owner=OWNER).estimate is None


def test_what_is_asked_often_takes_no_longer_for_all_the_jobs_that_have_ended(store: Stores) -> None:
    ended = 3000
    with store.database.transaction() as connection:
        connection.executemany(
            "INSERT INTO jobs (owner, question, id, finished_at, state, request_id, model, options, "
            "priority, source_kind, source_ready, created_at) "
            "VALUES ('default', 'q', ?, ?, 'succeeded', 'r', 'none', '{}', 'batch', 'upload', 1, 1.0)",
            [(new_job_id(), float(number)) for number in range(ended)],
        )
    add(store)
    epoch = store.queue.begin_epoch(pid=1)
    questions: dict[str, Callable[[], object]] = {
        "active": lambda: store.active_count(owner=OWNER),
        "list": lambda: store.list(state=JobState.FAILED, owner=OWNER),
        "page": lambda: store.list(limit=10, owner=OWNER),
        "old": lambda: store.queue.oldest_ended(before=5.0, limit=20),
        "cancelled": lambda: store.queue.cancel_requests(epoch),
        "waiting": lambda: store.queue.say_waiting(None),
        "claim": lambda: store.queue.claim(epoch),
    }
    steps = []
    store.database._connect().set_progress_handler(lambda: steps.append(1), 1)  # counts SQLite's own steps
    for name, ask in questions.items():
        steps.clear()
        ask()
        assert len(steps) < ended, name
    assert len(store.queue.oldest_ended(before=5.0, limit=20)) == 5


def woken_by(wakeups: Wakeups, change: Callable[[], object]) -> set[Program]:
    """The programs that `change` wakes."""
    with ExitStack() as stack:
        listeners = {program: stack.enter_context(wakeups.listen(program)) for program in Program}
        change()
        return {program for program, listener in listeners.items() if listener.wait(0.02)}


def test_every_change_wakes_who_waits_for_it(store: Stores, wakeups: Wakeups) -> None:
    epoch, job_id = store.queue.begin_epoch(pid=1), new_job_id()
    plain = JobRequest(owner=OWNER, request_id="r", model="none", options=DetectionOptions())
    told = replace(plain, callback=Callback("https://example.com/", "https://example.com/"))
    remote = VideoSource(
        None, None, None, SourceKind.URL, "https://example.com/v", url="https://example.com/v"
    )
    queued = add(store)
    assert woken_by(wakeups, lambda: store.queue.claim(epoch)) == {Program.WEB}
    assert woken_by(wakeups, lambda: store.queue.claim(epoch)) == set()  # there is none
    assert woken_by(wakeups, lambda: store.queue.update(queued, epoch, Progress(1, 2, 1, 2))) == {Program.WEB}
    assert woken_by(wakeups, lambda: store.request_cancel(queued, owner=OWNER)) == {*Program}
    assert woken_by(wakeups, lambda: store.queue.finish(queued, epoch, JobState.CANCELLED)) == {Program.WEB}
    assert woken_by(wakeups, lambda: store.heartbeats.report_engine(epoch, ready=True)) == set()
    assert woken_by(wakeups, lambda: store.add(new_job_id(), plain, SOURCE)) == {Program.ENGINE}
    assert woken_by(wakeups, lambda: store.add(new_job_id(), plain, remote)) == {Program.COURIER}
    store.queue.claim(epoch)
    assert woken_by(wakeups, lambda: store.add(job_id, told, SOURCE)) == {Program.ENGINE, Program.COURIER}
    store.queue.claim(epoch)
    ended = woken_by(wakeups, lambda: store.queue.finish(job_id, epoch, JobState.SUCCEEDED))
    assert ended == {Program.WEB, Program.COURIER}


def test_what_a_power_cut_may_undo_leaves_the_next_record_durable(store: Stores) -> None:
    epoch, job_id = store.queue.begin_epoch(pid=1), add(store)
    store.queue.claim(epoch)
    store.queue.update(job_id, epoch, Progress(1, 2, 1, 2))
    (synchronous,) = store.database.read("PRAGMA synchronous").fetchone()
    assert synchronous == 2  # FULL


def test_an_owner_sees_and_touches_only_their_own_jobs(store: Stores) -> None:
    mine, other = add(store), "somebody-else"
    assert store.list(owner=other) == []
    assert store.find([mine], owner=other) == {}
    assert store.active_count(owner=other) == 0
    assert not any(store.counts(owner=other).values())
    for touch in (store.get, store.delete, store.request_cancel):
        with pytest.raises(JobNotFound):
            touch(mine, owner=other)
    assert store.get(mine, owner=OWNER).state is JobState.QUEUED
    assert store.counts(owner=OWNER)[JobState.QUEUED] == store.queue.counts()[JobState.QUEUED] == 1
