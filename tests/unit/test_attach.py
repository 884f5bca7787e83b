"""A request that was made before is given the job it had; any other gets one of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_reports import model_report
from stores import Stores

from app.errors import FrameboxError, IdempotencyConflict, InternalError, JobNotFound, NoVideoStream
from app.jobs.attach import question
from app.jobs.job import OWNER, Job, JobRequest, JobState, Priority, VideoSource
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.storage.data_folder import new_job_id

SOURCE = VideoSource(1000, "ab" * 32, "a.mp4")
OTHER_SOURCE = VideoSource(1000, "cd" * 32, "a.mp4")
PLAIN = JobRequest(owner=OWNER, request_id="r", model="people", options=DetectionOptions(), model_sha256="11")
EQUAL = replace(PLAIN, may_attach=True)
KEYED = replace(PLAIN, idempotency_key="key")


def add(store: Stores, request: JobRequest, source: VideoSource = SOURCE) -> Job:
    return store.add(new_job_id(), request, source)


def end(store: Stores, state: JobState, error: FrameboxError | None = None, model_sha256: str = "11") -> None:
    epoch = store.queue.begin_epoch(pid=1)
    job = store.queue.claim(epoch)
    assert job is not None
    problem = None if error is None else error.to_problem()
    report = DetectionReport(model=model_report("people", sha256=model_sha256))
    store.queue.finish(job.id, epoch, state, problem=problem, report=report)


def test_without_leave_to_attach_every_request_gets_a_job_of_its_own(store: Stores) -> None:
    assert add(store, PLAIN).id != add(store, PLAIN).id


def test_an_equal_request_gets_the_job_that_waits_runs_or_has_succeeded(store: Stores) -> None:
    job = add(store, PLAIN)
    assert add(store, EQUAL).id == job.id
    store.queue.claim(store.queue.begin_epoch(pid=1))
    assert add(store, EQUAL).id == job.id
    end(store, JobState.SUCCEEDED)
    assert add(store, EQUAL).id == job.id
    assert len(store.queue.ids()) == 1


@pytest.mark.parametrize(
    ("request_", "source"),
    [
        (EQUAL, OTHER_SOURCE),
        (replace(EQUAL, model="pets"), SOURCE),
        (replace(EQUAL, options=DetectionOptions(stride=2)), SOURCE),
        (replace(EQUAL, model_sha256="22"), SOURCE),
        (replace(EQUAL, model_sha256=None), SOURCE),
    ],
)
def test_whatever_decides_the_answer_makes_another_job(
    store: Stores, request_: JobRequest, source: VideoSource
) -> None:
    job = add(store, PLAIN)
    end(store, JobState.SUCCEEDED)
    assert add(store, request_, source).id != job.id


def test_the_default_models_name_is_no_other_option(store: Stores) -> None:
    job = add(store, PLAIN)
    named = replace(EQUAL, options=DetectionOptions(model="people"))
    assert add(store, named).id == job.id


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_came_to_nothing_attracts_nobody(store: Stores, state: JobState) -> None:
    job = add(store, PLAIN)
    end(store, state, NoVideoStream("none"))
    assert add(store, EQUAL).id != job.id


def test_a_job_whose_end_was_asked_for_attracts_nobody(store: Stores) -> None:
    job = add(store, PLAIN)
    store.queue.claim(store.queue.begin_epoch(pid=1))
    store.request_cancel(job.id, owner=OWNER)
    assert add(store, EQUAL).id != job.id


def test_a_key_stands_for_its_job_before_the_video_is_read(store: Stores) -> None:
    assert store.attach(KEYED, VideoSource(1000, None, None), is_read=False) is None
    job = add(store, KEYED)
    for size_bytes in (1000, None):
        again = store.attach(KEYED, VideoSource(size_bytes, None, None), is_read=False)
        assert again is not None
        assert again.id == job.id
    assert add(store, KEYED).id == job.id


@pytest.mark.parametrize(
    ("request_", "size_bytes", "differs"),
    [
        (KEYED, 999, "length"),
        (replace(KEYED, model="pets"), None, "model"),
        (replace(KEYED, options=DetectionOptions(stride=2)), 1000, "options"),
    ],
)
def test_a_key_of_another_request_is_refused_before_the_video_is_read(
    store: Stores, request_: JobRequest, size_bytes: int | None, differs: str
) -> None:
    job = add(store, KEYED)
    with pytest.raises(IdempotencyConflict) as caught:
        store.attach(request_, VideoSource(size_bytes, None, None), is_read=False)
    assert caught.value.extensions == {"differs": [differs], "job_id": job.id}


def test_a_key_of_another_video_is_refused_once_it_was_read(store: Stores) -> None:
    add(store, KEYED)
    with pytest.raises(IdempotencyConflict, match="content"):
        add(store, KEYED, OTHER_SOURCE)
    assert len(store.queue.ids()) == 1


def test_a_key_that_attached_by_content_stands_for_that_job_too(store: Stores) -> None:
    job = add(store, KEYED)
    other = replace(EQUAL, idempotency_key="other")
    assert add(store, other).id == job.id
    again = store.attach(other, VideoSource(None, None, None), is_read=False)
    assert again is not None
    assert again.id == job.id


def test_a_key_is_answered_by_a_video_that_cannot_be_used(store: Stores) -> None:
    job = add(store, KEYED)
    end(store, JobState.FAILED, NoVideoStream("none"))
    assert add(store, KEYED).id == job.id


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_key_is_free_again_after_a_fault_of_ours_or_a_cancellation(store: Stores, state: JobState) -> None:
    job = add(store, KEYED)
    end(store, state, InternalError("ours"))
    new = add(store, KEYED)
    assert new.id != job.id
    assert add(store, KEYED).id == new.id


def test_a_deleted_job_takes_its_keys_along(store: Stores) -> None:
    job = add(store, KEYED)
    end(store, JobState.SUCCEEDED)
    store.delete(job.id, owner=OWNER)
    assert store.attach(KEYED, VideoSource(1000, None, None), is_read=False) is None
    with pytest.raises(JobNotFound):
        store.get(job.id, owner=OWNER)


def test_who_waits_for_a_job_hurries_it(store: Stores) -> None:
    job = add(store, PLAIN)
    assert job.priority is Priority.BATCH
    assert add(store, replace(EQUAL, priority=Priority.INTERACTIVE)).priority is Priority.INTERACTIVE
    assert add(store, EQUAL).priority is Priority.INTERACTIVE


def test_jobs_and_keys_of_other_owners_answer_nothing(store: Stores) -> None:
    job = add(store, replace(EQUAL, idempotency_key="key"))
    theirs = replace(EQUAL, idempotency_key="key", owner="somebody-else")
    assert store.attach(theirs, SOURCE) is None
    other = add(store, replace(theirs, options=DetectionOptions(stride=2)))
    assert other.id != job.id
    assert add(store, replace(EQUAL, idempotency_key="key")).id == job.id


def test_the_newest_job_of_the_current_model_answers(store: Stores) -> None:
    add(store, PLAIN)
    end(store, JobState.SUCCEEDED)
    newest = add(store, PLAIN)
    end(store, JobState.SUCCEEDED)
    add(store, PLAIN)
    end(store, JobState.SUCCEEDED, model_sha256="22")
    assert add(store, EQUAL).id == newest.id
    queued = add(store, PLAIN)
    assert add(store, EQUAL).id == queued.id, "it will run with the model that there is then"


def test_looking_for_an_equal_job_takes_the_same_time_however_many_there_are(store: Stores) -> None:
    steps: list[int] = []
    taken = []
    for count in (10, 2000):
        with store.database.transaction() as connection:
            for state, sha256 in (
                ("succeeded", "22"),
                ("succeeded", "11"),
                ("failed", None),
                ("queued", None),
            ):
                connection.executemany(
                    "INSERT INTO jobs (owner, id, state, model_sha256, content_key, question, request_id, "
                    "model, options, priority, source_kind, source_ready, created_at) "
                    "VALUES (?, ?, ?, ?, ?, ?, 'r', 'people', '{}', 'batch', 'upload', 1, 1.0)",
                    [
                        (OWNER, new_job_id(), state, sha256, SOURCE.content_key, question(EQUAL))
                        for _ in range(count)
                    ],
                )
        store.database._connect().set_progress_handler(lambda: steps.append(1), 1)  # SQLite's own steps
        steps.clear()
        assert store.attach(EQUAL, SOURCE) is not None
        taken.append(len(steps))
        store.database._connect().set_progress_handler(None, 1)
    assert taken[1] < 1.2 * taken[0]
