"""A job as callers see it."""

from __future__ import annotations

import dataclasses

import pytest

from app.jobs.job import Estimate, Job, JobState, Progress, VideoSource
from app.jobs.report import event_id, public_report
from app.pipeline.options import DetectionOptions

JOB = Job(
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
    report={"video": {"codec": "h264"}},
    estimate=Estimate(32.5, 1_000_018.0),
)


def test_a_running_job_tells_how_far_it_is_and_how_long_it_may_take():
    report = public_report(JOB, now=1_000_020.5)
    assert report["state"] == "running"
    assert report["created_at"] == "1970-01-12T13:46:40.000Z"
    assert report["finished_at"] is None
    assert report["progress"]["fraction"] == 0.25
    assert report["progress"]["seconds_left"] == 30.0
    assert report["options"] == {"min_score": 0.5, "model": "people"}
    assert report["video"] == {"codec": "h264"}
    assert report["completeness"] is None
    assert "result" not in report["links"]


@pytest.mark.parametrize(
    "job",
    [
        dataclasses.replace(JOB, estimate=None),
        dataclasses.replace(JOB, state=JobState.QUEUED),
        dataclasses.replace(JOB, state=JobState.FAILED),
    ],
)
def test_an_unknown_end_gives_no_estimate(job: Job):
    assert public_report(job, now=1_000_020.5)["progress"]["seconds_left"] is None


def test_time_that_passed_since_the_estimate_is_taken_off_it():
    assert public_report(JOB, now=1_000_022.0)["progress"]["seconds_left"] == 28.5
    nearly_done = dataclasses.replace(JOB, estimate=Estimate(1.0, 1_000_018.0))
    assert public_report(nearly_done, now=1_000_022.0)["progress"]["seconds_left"] == 0.0


def test_a_job_whose_engine_is_silent_has_no_estimate():
    assert public_report(JOB, now=1_000_030.0)["progress"]["seconds_left"] is None


def test_a_clock_that_went_back_changes_no_estimate():
    assert public_report(JOB, now=0.0)["progress"]["seconds_left"] == 32.5


def test_a_succeeded_job_is_whole_and_links_its_result():
    done = dataclasses.replace(JOB, state=JobState.SUCCEEDED, progress=Progress(), finished_at=1_000_030.0)
    report = public_report(done, now=2e6)
    assert report["progress"]["fraction"] == 1.0
    assert report["links"]["result"] == f"/v1/jobs/{JOB.id}/result"


def test_missing_frames_are_not_done_and_their_work_is():
    lossy = dataclasses.replace(JOB, progress=Progress(20, 100, 1, 4, frames_missing=5))
    progress = public_report(lossy, now=0.0)["progress"]
    assert (progress["frames_done"], progress["frames_missing"]) == (20, 5)
    assert progress["fraction"] == 0.25
    ended = dataclasses.replace(JOB, progress=Progress(87, 100, 4, 4, frames_missing=13))
    assert public_report(ended, now=0.0)["progress"]["fraction"] == 1.0


def test_event_ids_differ_with_every_change_that_a_caller_can_see():
    variants = [
        JOB,
        dataclasses.replace(JOB, state=JobState.SUCCEEDED),
        dataclasses.replace(JOB, progress=Progress(26, 100, 1, 4)),
        dataclasses.replace(JOB, progress=Progress(25, 101, 1, 4)),
        dataclasses.replace(JOB, progress=Progress(25, 100, 1, 4, frames_missing=1)),
        dataclasses.replace(JOB, cancel_requested=True),
    ]
    assert len({event_id(job) for job in variants}) == len(variants)
    assert event_id(JOB) == event_id(dataclasses.replace(JOB))
