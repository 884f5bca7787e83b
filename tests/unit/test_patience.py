"""Jobs for a model without room: others overtake them for a while, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import Stores

from app.engine.turns import PATIENCE_SECONDS, Patience
from app.jobs.job import OWNER, Job, JobRequest, VideoSource
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
def patience(clock: Clock) -> Patience:
    return Patience(clock=clock)


def test_a_model_is_overdue_when_it_was_passed_over_for_long(clock: Clock, patience: Patience) -> None:
    patience.note({"large"})
    assert patience.overdue() is None
    clock.seconds = PATIENCE_SECONDS
    patience.note({"large"})
    assert patience.overdue() == "large"
    patience.begun("small")
    assert patience.overdue() == "large"
    patience.begun("large")
    assert patience.overdue() is None


def test_the_model_that_waits_longest_comes_first(clock: Clock, patience: Patience) -> None:
    patience.note({"second"})
    clock.seconds = 1.0
    patience.note({"second", "first"})
    clock.seconds = 2 * PATIENCE_SECONDS
    patience.note({"second", "first"})
    assert patience.overdue() == "second"
    patience.begun("second")
    assert patience.overdue() == "first"


def test_a_model_for_which_no_job_waits_any_more_is_forgotten(clock: Clock, patience: Patience) -> None:
    patience.note({"large"})
    clock.seconds = PATIENCE_SECONDS
    patience.note(set())
    assert patience.overdue() is None
    assert not patience.models


def test_a_stream_of_other_jobs_does_not_starve_a_model_without_room(
    tmp_path: Path, clock: Clock, patience: Patience
) -> None:
    """As the engine claims: one place is free again and again, while another job keeps the model in use."""
    store = Stores(tmp_path / "jobs.sqlite3")
    store.database.create()
    epoch = store.queue.begin_epoch(pid=1)

    def add(model: str) -> str:
        request = JobRequest(OWNER, "request", model, DetectionOptions())
        return store.add(new_job_id(), request, VideoSource(1, "0" * 64, None)).id

    def claim(crowded: set[str]) -> Job | None:
        patience.note(store.queue.queued_models(crowded | patience.models))
        job = store.queue.claim(epoch, without_models=crowded, only_model=patience.overdue())
        if job is not None:
            patience.begun(job.model)
        return job

    large = add("large")
    for _ in range(10):
        add("small")
    overtaking = 0
    while (job := claim({"large"})) is not None:
        assert job.model == "small"
        overtaking += 1
        clock.seconds += PATIENCE_SECONDS / 4
    assert overtaking == 4
    assert store.queue.queued_models({"large", "small", "other"}) == {"large", "small"}
    job = claim(set())  # "small" has come to be unused
    assert job is not None
    assert job.id == large
    job = claim({"large"})
    assert job is not None
    assert job.model == "small"
