"""Jobs for a model without room: others overtake them for a while, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import Stores

from app.engine.turns import OVERTAKING_SECONDS, OvertakenModels
from app.jobs.job import OWNER, Job, JobRequest, VideoSource
from app.jobs.queue import Claim
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import new_job_id


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def overtaken(clock: Clock) -> OvertakenModels:
    return OvertakenModels(clock=clock)


def test_a_model_is_overdue_when_it_was_passed_over_for_long(
    clock: Clock, overtaken: OvertakenModels
) -> None:
    overtaken.update({"large"})
    assert overtaken.overdue() is None
    clock.seconds = OVERTAKING_SECONDS
    overtaken.update({"large"})
    assert overtaken.overdue() == "large"
    overtaken.note_started("small")
    assert overtaken.overdue() == "large"
    overtaken.note_started("large")
    assert overtaken.overdue() is None


def test_the_model_that_waits_longest_comes_first(clock: Clock, overtaken: OvertakenModels) -> None:
    overtaken.update({"second"})
    clock.seconds = 1.0
    overtaken.update({"second", "first"})
    clock.seconds = 2 * OVERTAKING_SECONDS
    overtaken.update({"second", "first"})
    assert overtaken.overdue() == "second"
    overtaken.note_started("second")
    assert overtaken.overdue() == "first"


def test_a_model_for_which_no_job_waits_any_more_is_forgotten(
    clock: Clock, overtaken: OvertakenModels
) -> None:
    overtaken.update({"large"})
    clock.seconds = OVERTAKING_SECONDS
    overtaken.update(set())
    assert overtaken.overdue() is None
    assert not overtaken.names


def test_a_stream_of_other_jobs_does_not_starve_a_model_without_room(
    tmp_path: Path, clock: Clock, overtaken: OvertakenModels
) -> None:
    """As the engine claims: one slot is free again and again, while another job keeps the model in use."""
    store = Stores(tmp_path / "jobs.sqlite3")
    store.database.create()
    epoch = store.queue.begin_epoch(pid=1)

    def add(model: str) -> str:
        request = JobRequest(OWNER, "request", model, DetectionOptions())
        return store.add(new_job_id(), request, VideoSource(1, "0" * 64, None)).id

    def claim(crowded: set[str]) -> Job | None:
        overtaken.update(store.queue.queued_models(crowded | overtaken.names))
        job = store.queue.claim(epoch, Claim(without_models=crowded, only_model=overtaken.overdue()))
        if job is not None:
            overtaken.note_started(job.model)
        return job

    large = add("large")
    for _ in range(10):
        add("small")
    overtaking = 0
    while (job := claim({"large"})) is not None:
        assert job.model == "small"
        overtaking += 1
        clock.seconds += OVERTAKING_SECONDS / 4
    assert overtaking == 4
    assert store.queue.queued_models({"large", "small", "other"}) == {"large", "small"}
    job = claim(set())  # "small" has come to be unused
    assert job is not None
    assert job.id == large
    job = claim({"large"})
    assert job is not None
    assert job.model == "small"
