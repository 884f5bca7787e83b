"""A job's record: states change once, in one direction, and only by whom they belong to."""

from __future__ import annotations

import sqlite3
import threading
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

from app.errors import JobIsActive, JobNotFound
from app.jobs.engine_status import HostStatus
from app.jobs.job import (
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
from app.jobs.store import SCHEMA_VERSION, JobStore, LeaseLost
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


def add(store: JobStore) -> str:
    options = DetectionOptions(min_score=0.5, labels=("person",))
    request = JobRequest(request_id="request", model="none", options=options)
    return store.add(new_job_id(), request, SOURCE).id


def test_a_job_reads_back_as_it_was_added(store: JobStore) -> None:
    job = store.get(add(store))
    assert job.state is JobState.QUEUED
    assert job.options == DetectionOptions(min_score=0.5, labels=("person",))
    assert job.source == VideoSource(123, "ab" * 32, "clip.mp4")
    assert job.progress == Progress()


def test_jobs_are_claimed_in_order_and_once(store: JobStore) -> None:
    ids = [add(store) for _ in range(3)]
    epoch = store.begin_epoch(pid=1)
    claimed = [store.claim(epoch) for _ in range(4)]
    assert [job and job.id for job in claimed] == [*ids, None]


def test_many_threads_never_claim_the_same_job(store: JobStore) -> None:
    ids = {add(store) for _ in range(40)}
    epoch = store.begin_epoch(pid=1)
    claimed: list[str] = []

    def claim_all() -> None:
        while (job := store.claim(epoch)) is not None:
            claimed.append(job.id)
        store.close()

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claimed) == len(ids)
    assert set(claimed) == ids


def test_a_new_engine_takes_over_what_the_old_one_was_running(store: JobStore) -> None:
    job_id = add(store)
    old = store.begin_epoch(pid=1)
    store.claim(old)
    new = store.begin_epoch(pid=2)
    assert store.get(job_id).state is JobState.QUEUED
    job = store.claim(new)
    assert job is not None
    assert job.id == job_id


def test_an_old_engine_can_no_longer_write(store: JobStore) -> None:
    job_id = add(store)
    old = store.begin_epoch(pid=1)
    store.claim(old)
    new = store.begin_epoch(pid=2)
    store.claim(new)
    for write in (
        lambda: store.update(job_id, old, Progress(frames_done=9)),
        lambda: store.finish(job_id, old, JobState.SUCCEEDED),
        lambda: store.put_back(job_id, old),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.get(job_id).state is JobState.RUNNING


def test_final_states_stay(store: JobStore) -> None:
    job_id = add(store)
    epoch = store.begin_epoch(pid=1)
    store.claim(epoch)
    store.finish(job_id, epoch, JobState.SUCCEEDED, progress=Progress(5, 5, 1, 1))
    with pytest.raises(LeaseLost):
        store.finish(job_id, epoch, JobState.FAILED)
    job = store.request_cancel(job_id)
    assert job.state is JobState.SUCCEEDED
    assert not job.cancel_requested
    assert job.progress == Progress(5, 5, 1, 1)
    store.begin_epoch(pid=2)
    assert store.get(job_id).state is JobState.SUCCEEDED


def test_cancelling_ends_a_queued_job_and_asks_for_a_running_ones_end(store: JobStore) -> None:
    running, queued = add(store), add(store)
    epoch = store.begin_epoch(pid=1)
    store.claim(epoch)
    assert store.request_cancel(queued).state is JobState.CANCELLED
    assert store.request_cancel(running).state is JobState.RUNNING
    assert store.cancel_requests(epoch) == {running}


def test_only_a_job_that_has_ended_can_be_deleted(store: JobStore) -> None:
    job_id = add(store)
    with pytest.raises(JobIsActive):
        store.delete(job_id)
    store.request_cancel(job_id)
    store.delete(job_id)
    with pytest.raises(JobNotFound):
        store.get(job_id)


def test_the_list_is_newest_first_and_goes_on_from_a_cursor(store: JobStore) -> None:
    ids = [add(store) for _ in range(5)]
    first = store.list(limit=2)
    assert [job.id for job in first] == [ids[4], ids[3]]
    assert [job.id for job in store.list(limit=10, before=first[-1].id)] == [ids[2], ids[1], ids[0]]
    store.request_cancel(ids[2])
    assert [job.id for job in store.list(state=JobState.CANCELLED)] == [ids[2]]


def test_the_data_version_tells_of_other_connections_changes(store: JobStore, folder: DataFolder) -> None:
    before = store.data_version()
    other = JobStore(folder.database)
    add(other)
    other.close()
    assert store.data_version() != before


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 8])
def test_a_folder_of_another_release_is_refused(store: JobStore, folder: DataFolder, version: int) -> None:
    with sqlite3.connect(folder.database) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(
        RuntimeError, match=f"version {version}, and this release reads version {SCHEMA_VERSION} only"
    ):
        store.create()


def test_a_report_reads_back_as_it_was_written(store: JobStore) -> None:
    job_id = add(store)
    epoch = store.begin_epoch(pid=1)
    store.claim(epoch)
    whole = finished_report(123, "cd" * 32, found=completeness(100, missing=3))
    early = DetectionReport(model=whole.model, video=whole.video)
    assert store.get(job_id).report is None
    for report in (early, whole):
        store.update(job_id, epoch, Progress(5, 5, 1, 1), report)
        assert store.get(job_id).report == report
    store.update(job_id, epoch, Progress(6, 6, 1, 1))
    store.finish(job_id, epoch, JobState.SUCCEEDED)
    assert store.get(job_id).report == whole


def add_with(store: JobStore, priority: Priority) -> str:
    request = JobRequest(request_id="r", model="none", options=DetectionOptions(), priority=priority)
    return store.add(new_job_id(), request, SOURCE).id


def test_interactive_jobs_are_claimed_first_and_in_order(store: JobStore) -> None:
    order = (Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH, Priority.INTERACTIVE)
    ids = [add_with(store, priority) for priority in order]
    epoch = store.begin_epoch(pid=1)
    claimed = [store.claim(epoch) for _ in range(5)]
    assert [job and job.id for job in claimed] == [ids[1], ids[3], ids[0], ids[2], None]


def test_the_engine_says_whose_turn_it_is(store: JobStore) -> None:
    batch, interactive = add_with(store, Priority.BATCH), add_with(store, Priority.INTERACTIVE)
    epoch = store.begin_epoch(pid=1)
    claimed = store.claim(epoch, (Priority.BATCH, Priority.INTERACTIVE))
    assert claimed is not None
    assert claimed.id == batch
    add_with(store, Priority.BATCH)
    claimed = store.claim(epoch, (Priority.INTERACTIVE,))
    assert claimed is not None
    assert claimed.id == interactive
    assert store.claim(epoch, (Priority.INTERACTIVE,)) is None


def test_queued_jobs_tell_what_they_wait_for_until_they_are_taken_up(store: JobStore) -> None:
    first, second, cancelled = add(store), add(store), add(store)
    epoch = store.begin_epoch(pid=1)
    store.claim(epoch)
    store.put_back(first, epoch, Waiting.DISK_SPACE)
    assert store.get(first).waiting is Waiting.DISK_SPACE
    assert store.get(second).waiting is None
    store.say_waiting(Waiting.DISK_SPACE)
    assert store.get(second).waiting is Waiting.DISK_SPACE
    assert store.request_cancel(cancelled).waiting is None
    job = store.claim(epoch)
    assert job is not None
    assert (job.id, job.waiting) == (first, None)
    store.say_waiting(None)
    assert store.get(second).waiting is None


def test_jobs_for_models_without_room_are_passed_over_and_say_so(store: JobStore) -> None:
    epoch = store.begin_epoch(pid=1)
    large, small = new_job_id(), new_job_id()
    for job_id, model in ((large, "large"), (small, "small")):
        store.add(job_id, JobRequest("request", model, DetectionOptions()), VideoSource(1, "0" * 64, None))
    claimed = store.claim(epoch, without_models=["large"])
    assert claimed is not None
    assert claimed.id == small
    assert store.claim(epoch, without_models=["large"]) is None
    store.say_waiting(None, crowded_models=["large"])
    assert store.get(large).waiting is Waiting.MODEL_MEMORY
    store.say_waiting(None)
    assert store.get(large).waiting is None
    claimed = store.claim(epoch)
    assert claimed is not None
    assert claimed.id == large


def test_what_the_engine_says_of_itself_reads_back_and_stays_until_it_says_otherwise(store: JobStore) -> None:
    before = store.engine_status()
    assert (before.models, before.hosts, before.sandbox) == ((), (), None)
    epoch = store.begin_epoch(pid=1)
    models = (ready_model("a", "cat"), loading_model("b"), refused_model("c"))
    store.report_engine(epoch, ready=True, models=models, hosts=[HOST], sandbox=SANDBOX)
    store.report_engine(epoch, ready=False)
    status = store.engine_status()
    assert (status.ready, status.models, status.hosts, status.sandbox) == (False, models, (HOST,), SANDBOX)
    store.report_engine(epoch, ready=True, hosts=[])
    assert (store.engine_status().models, store.engine_status().hosts) == (models, ())


def add_many(store: JobStore, count: int) -> None:
    for _ in range(count):
        add(store)


def test_a_database_without_room_changes_nothing_and_goes_on_when_there_is(store: JobStore) -> None:
    job_id = add(store)
    connection = store._connect()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error) as caught:
        add_many(store, 10_000)
    assert is_disk_full(caught.value)
    assert store.get(job_id).state is JobState.QUEUED
    connection.execute("PRAGMA max_page_count = 100000")
    assert add(store) in store.ids()


def advance(seconds_left: float | None = None, *, reached: int = 0, total: int | None = None) -> Advance:
    return Advance(reached, total, None if total is None else 2, seconds_left)


def test_frames_of_unfinished_segments_are_written_down_for_the_time_of_the_run(store: JobStore) -> None:
    job_id = add(store)
    epoch = store.begin_epoch(pid=1)
    store.claim(epoch)
    store.report_engine(epoch, ready=True, advances={job_id: advance(reached=7)})
    assert store.get(job_id).progress == Progress(frames_reached=7)
    store.report_engine(epoch, ready=True, advances={job_id: advance(reached=8, total=20)})
    assert store.get(job_id).progress == Progress(0, 20, 0, 2, frames_reached=8)
    store.update(job_id, epoch, Progress(10, 20, 1, 2))
    store.report_engine(epoch, ready=True, advances={job_id: advance(reached=12)})
    assert store.get(job_id).progress == Progress(10, 20, 1, 2, frames_reached=12)
    store.claim(store.begin_epoch(pid=2))
    assert store.get(job_id).progress == Progress(10, 20, 1, 2)


def test_an_estimate_lasts_as_long_as_the_run_that_it_was_made_in(store: JobStore) -> None:
    job_id = add(store)
    epoch = store.begin_epoch(pid=1)
    store.report_engine(epoch, ready=True, advances={job_id: advance(5.0)})
    assert store.get(job_id).estimate is None  # not running yet
    store.claim(epoch)
    store.report_engine(epoch, ready=True, advances={job_id: advance(42.0)})
    estimate = store.get(job_id).estimate
    assert estimate is not None
    assert (estimate.seconds_left, estimate.made_at) == (42.0, store.engine_status().heartbeat_at)
    store.report_engine(epoch + 1, ready=True, advances={job_id: advance(1.0)})  # not that engine's job
    assert store.get(job_id).estimate == estimate
    store.claim(store.begin_epoch(pid=2))
    assert store.get(job_id).estimate is None


def test_what_is_asked_often_takes_no_longer_for_all_the_jobs_that_have_ended(store: JobStore) -> None:
    ended = 3000
    with store._transaction() as connection:
        connection.executemany(
            "INSERT INTO jobs (id, finished_at, state, request_id, model, options, priority, source_kind, "
            "source_ready, created_at) "
            "VALUES (?, ?, 'succeeded', 'r', 'none', '{}', 'batch', 'upload', 1, 1.0)",
            [(new_job_id(), float(number)) for number in range(ended)],
        )
    add(store)
    epoch = store.begin_epoch(pid=1)
    questions: dict[str, Callable[[], object]] = {
        "active": store.active_count,
        "list": lambda: store.list(state=JobState.FAILED),
        "page": lambda: store.list(limit=10),
        "old": lambda: store.oldest_ended(before=5.0, limit=20),
        "cancelled": lambda: store.cancel_requests(epoch),
        "waiting": lambda: store.say_waiting(None),
        "claim": lambda: store.claim(epoch),
    }
    steps = []
    store._connect().set_progress_handler(lambda: steps.append(1), 1)  # counts SQLite's own steps
    for name, ask in questions.items():
        steps.clear()
        ask()
        assert len(steps) < ended, name
    assert len(store.oldest_ended(before=5.0, limit=20)) == 5


def woken_by(wakeups: Wakeups, change: Callable[[], object]) -> set[Program]:
    """The programs that `change` wakes."""
    with ExitStack() as stack:
        listeners = {program: stack.enter_context(wakeups.listen(program)) for program in Program}
        change()
        return {program for program, listener in listeners.items() if listener.wait(0.02)}


def test_every_change_wakes_who_waits_for_it(store: JobStore, wakeups: Wakeups) -> None:
    epoch, job_id = store.begin_epoch(pid=1), new_job_id()
    plain = JobRequest(request_id="r", model="none", options=DetectionOptions())
    told = replace(plain, callback=Callback("https://example.com/", "https://example.com/"))
    remote = VideoSource(
        None, None, None, SourceKind.URL, "https://example.com/v", url="https://example.com/v"
    )
    queued = add(store)
    assert woken_by(wakeups, lambda: store.claim(epoch)) == {Program.WEB}
    assert woken_by(wakeups, lambda: store.claim(epoch)) == set()  # there is none
    assert woken_by(wakeups, lambda: store.update(queued, epoch, Progress(1, 2, 1, 2))) == {Program.WEB}
    assert woken_by(wakeups, lambda: store.request_cancel(queued)) == {*Program}
    assert woken_by(wakeups, lambda: store.finish(queued, epoch, JobState.CANCELLED)) == {Program.WEB}
    assert woken_by(wakeups, lambda: store.report_engine(epoch, ready=True)) == set()
    assert woken_by(wakeups, lambda: store.add(new_job_id(), plain, SOURCE)) == {Program.ENGINE}
    assert woken_by(wakeups, lambda: store.add(new_job_id(), plain, remote)) == {Program.COURIER}
    store.claim(epoch)
    assert woken_by(wakeups, lambda: store.add(job_id, told, SOURCE)) == {Program.ENGINE, Program.COURIER}
    store.claim(epoch)
    ended = woken_by(wakeups, lambda: store.finish(job_id, epoch, JobState.SUCCEEDED))
    assert ended == {Program.WEB, Program.COURIER}


def test_what_a_power_cut_may_undo_leaves_the_next_record_durable(store: JobStore) -> None:
    epoch, job_id = store.begin_epoch(pid=1), add(store)
    store.claim(epoch)
    store.update(job_id, epoch, Progress(1, 2, 1, 2))
    (synchronous,) = store.reading().execute("PRAGMA synchronous").fetchone()
    assert synchronous == 2  # FULL
