"""A job as callers see it."""

from __future__ import annotations

import dataclasses

import pytest
from sample_reports import SHA256, VIDEO, finished_report, model_report

from app.errors import DamagedVideo
from app.jobs.job import (
    OWNER,
    Delivery,
    DeliveryState,
    Estimate,
    Job,
    JobState,
    Priority,
    Progress,
    SourceKind,
    VideoSource,
    Waiting,
)
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.web.report import callback_body, event_id, public_report

JOB = Job(
    owner=OWNER,
    id="a" * 32,
    state=JobState.RUNNING,
    request_id="r",
    model="people",
    options=DetectionOptions(min_score=0.5),
    source=VideoSource(1234, "b" * 64, "clip.mp4"),
    created_at=1_000_000.0,
    started_at=1_000_010.5,
    finished_at=None,
    progress=Progress(25, 100, 1, 4),
    cancel_requested=False,
    problem=None,
    report=DetectionReport(model=model_report(), video=VIDEO),
    estimate=Estimate(32.5, 1_000_018.0),
)


def test_a_running_job_tells_how_far_it_is_and_how_long_it_may_take():
    report = public_report(JOB, now=1_000_020.5)
    assert report.state == "running"
    assert report.model_dump(mode="json")["created_at"] == "1970-01-12T13:46:40.000Z"
    assert report.finished_at is None
    assert report.progress.fraction == 0.25
    assert report.progress.seconds_left == 30.0
    assert report.options == {"min_score": 0.5, "model": "people"}
    assert report.video == VIDEO
    assert report.completeness is None
    assert "result" not in report.model_dump(mode="json")["links"]


@pytest.mark.parametrize(
    "job",
    [
        dataclasses.replace(JOB, estimate=None),
        dataclasses.replace(JOB, state=JobState.QUEUED),
        dataclasses.replace(JOB, state=JobState.FAILED),
    ],
)
def test_an_unknown_end_gives_no_estimate(job: Job):
    assert public_report(job, now=1_000_020.5).progress.seconds_left is None


def test_time_that_passed_since_the_estimate_is_taken_off_it():
    assert public_report(JOB, now=1_000_022.0).progress.seconds_left == 28.5
    nearly_done = dataclasses.replace(JOB, estimate=Estimate(1.0, 1_000_018.0))
    assert public_report(nearly_done, now=1_000_022.0).progress.seconds_left == 0.0


def test_a_job_whose_engine_is_silent_has_no_estimate():
    assert public_report(JOB, now=1_000_030.0).progress.seconds_left is None


def test_a_clock_that_went_back_changes_no_estimate():
    assert public_report(JOB, now=0.0).progress.seconds_left == 32.5


def test_a_succeeded_job_is_whole_and_links_its_result():
    done = dataclasses.replace(JOB, state=JobState.SUCCEEDED, progress=Progress(), finished_at=1_000_030.0)
    report = public_report(done, now=2e6)
    assert report.progress.fraction == 1.0
    assert report.links.result == f"/v1/jobs/{JOB.id}/result"


def test_missing_frames_are_not_done_and_their_work_is():
    lossy = dataclasses.replace(JOB, progress=Progress(20, 100, 1, 4, frames_missing=5))
    progress = public_report(lossy, now=0.0).progress
    assert (progress.frames_done, progress.frames_missing) == (20, 5)
    assert progress.fraction == 0.25
    ended = dataclasses.replace(JOB, progress=Progress(87, 100, 4, 4, frames_missing=13))
    assert public_report(ended, now=0.0).progress.fraction == 1.0


@pytest.mark.parametrize(
    ("progress", "in_progress", "fraction"),
    [
        (Progress(frames_reached=10), 10, None),  # the total is not known yet
        (Progress(0, 100, 0, 2, frames_reached=10), 10, 0.1),  # before the first segment is finished
        (Progress(40, 100, 1, 2, frames_missing=10, frames_reached=60), 10, 0.6),
        (
            Progress(40, 100, 1, 2, frames_missing=10, frames_reached=45),
            0,
            0.5,
        ),  # seen before the segment's end
        (Progress(40, 100, 1, 2, frames_reached=120), 60, 1.0),  # never more than there are
    ],
)
def test_frames_of_unfinished_segments_count_in_the_work_and_are_told_apart(
    progress: Progress, in_progress: int, fraction: float | None
):
    job = dataclasses.replace(JOB, progress=progress)
    told = public_report(job, now=0.0).progress
    assert (told.frames_done, told.frames_in_progress, told.fraction) == (
        progress.frames_done,
        in_progress,
        fraction,
    )
    queued = public_report(dataclasses.replace(job, state=JobState.QUEUED), now=0.0).progress
    assert queued.frames_in_progress == 0, "they are begun anew"


def test_event_ids_differ_with_every_change_that_a_caller_can_see():
    variants = [
        JOB,
        dataclasses.replace(JOB, state=JobState.SUCCEEDED),
        dataclasses.replace(JOB, progress=Progress(26, 100, 1, 4)),
        dataclasses.replace(JOB, progress=Progress(25, 101, 1, 4)),
        dataclasses.replace(JOB, progress=Progress(25, 100, 1, 4, frames_missing=1)),
        dataclasses.replace(JOB, progress=Progress(25, 100, 1, 4, frames_reached=30)),
        dataclasses.replace(JOB, cancel_requested=True),
    ]
    assert len({event_id(job) for job in variants}) == len(variants)
    assert event_id(JOB) == event_id(dataclasses.replace(JOB))


HEAD = f'{{"id":"{JOB.id}","state":'
LINKS = f'"links":{{"self":"/v1/jobs/{JOB.id}","events":"/v1/jobs/{JOB.id}/events"'
OPTIONS = DetectionOptions(min_score=0.5, labels=("a", "b"), start=1e-7, fps=29.97)
NEW_YEAR = 1767225600.0


def test_the_bytes_of_a_queued_jobs_report():
    job = dataclasses.replace(
        JOB,
        state=JobState.QUEUED,
        options=OPTIONS,
        source=VideoSource(None, None, None, SourceKind.URL, "https://x/y", received_bytes=0),
        priority=Priority.INTERACTIVE,
        waiting=Waiting.SOURCE,
        created_at=NEW_YEAR,
        started_at=None,
        progress=Progress(),
        report=None,
    )
    assert public_report(job, now=NEW_YEAR).model_dump_json() == (
        f'{HEAD}"queued","created_at":"2026-01-01T00:00:00.000Z","started_at":null,"finished_at":null,'
        '"cancel_requested":false,"priority":"interactive","waiting":"source",'
        '"progress":{"frames_done":0,"frames_missing":0,"frames_in_progress":0,"frames_total":null,"segments_done":0,'
        '"segments_total":null,"fraction":null,"seconds_left":null},'
        '"options":{"min_score":0.5,"labels":["a","b"],"fps":29.97,"start":1e-7,"model":"people"},'
        '"source":{"kind":"url","name":null,"address":"https://x/y","bytes":null,"sha256":null,'
        '"received_bytes":0},'
        '"video":null,"model":null,"completeness":null,"document":null,"problem":null,"callbacks":[],'
        f"{LINKS}}}}}"
    )


def test_the_bytes_of_a_failed_jobs_report_and_of_what_its_callbacks_carry():
    problem = DamagedVideo(
        "It is damaged.", {"frames_indexed": 1, "more": [{"z": None, "a": 1}]}
    ).to_problem()
    job = dataclasses.replace(
        JOB,
        state=JobState.FAILED,
        created_at=NEW_YEAR,
        started_at=NEW_YEAR + 0.1239,
        finished_at=NEW_YEAR + 99.9999,
        progress=Progress(25, 100, 1, 4, 3),
        report=DetectionReport(model=model_report()),
        problem=problem,
        deliveries=(
            Delivery("m1", "https://h/", DeliveryState.PENDING, 2, 503, "slow", NEW_YEAR + 100.5, None),
            Delivery("m2", "https://h/", DeliveryState.DELIVERED, 1, 200, None, None, NEW_YEAR + 100.25),
        ),
    )
    before = (
        f'{HEAD}"failed","created_at":"2026-01-01T00:00:00.000Z",'
        '"started_at":"2026-01-01T00:00:00.123Z","finished_at":"2026-01-01T00:01:39.999Z",'
        '"cancel_requested":false,"priority":"batch","waiting":null,'
        '"progress":{"frames_done":25,"frames_missing":3,"frames_in_progress":0,"frames_total":100,"segments_done":1,'
        '"segments_total":4,"fraction":0.28,"seconds_left":null},'
        '"options":{"min_score":0.5,"model":"people"},'
        f'"source":{{"kind":"upload","name":"clip.mp4","address":null,"bytes":1234,"sha256":"{"b" * 64}",'
        '"received_bytes":null},"video":null,'
        f'"model":{{"name":"hog-people","sha256":"{SHA256}","device":"cpu","labels":["person"]}},'
        '"completeness":null,"document":null,'
        '"problem":{"frames_indexed":1,"more":[{"z":null,"a":1}],"type":"/docs/errors#damaged",'
        '"title":"Video is damaged","status":422,"code":"damaged","detail":"It is damaged."},'
    )
    callbacks = (
        '"callbacks":[{"id":"m1","address":"https://h/","state":"pending","attempts":2,"last_status":503,'
        '"last_error":"slow","next_attempt_at":"2026-01-01T00:01:40.500Z","delivered_at":null},'
        '{"id":"m2","address":"https://h/","state":"delivered","attempts":1,"last_status":200,'
        '"last_error":null,"next_attempt_at":null,"delivered_at":"2026-01-01T00:01:40.250Z"}],'
    )
    assert public_report(job, now=0.0).model_dump_json() == f"{before}{callbacks}{LINKS}}}}}"
    assert callback_body(job).decode() == f"{before}{LINKS}}}}}"


def test_a_succeeded_jobs_report_holds_what_the_engine_found_as_it_is():
    found = finished_report(1, SHA256)
    job = dataclasses.replace(JOB, state=JobState.SUCCEEDED, finished_at=1_000_030.0, report=found)
    report = public_report(job, now=0.0)
    told = (report.model, report.video, report.completeness, report.document)
    assert told == (found.model, found.video, found.completeness, found.document)
    assert f'{LINKS},"result":"/v1/jobs/{JOB.id}/result"}}}}' in report.model_dump_json()
