"""Which job and which segment runs next, by rules that need no store and no host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.engine.turns import BATCH_JOB_TURN, QUARANTINED, TRUSTED, JobTurns, SegmentTurns
from app.jobs.job import Job, Priority
from app.jobs.queue import Claim

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


def turns_of(*segments: str, slots: int = 2, express_slots: int = 0) -> SegmentTurns[str]:
    """Segments are named after their jobs: ``big-0``."""
    turns = SegmentTurns[str](slots=slots, express_slots=express_slots)
    for segment in segments:
        turns.add(segment.partition("-")[0], segment)
    return turns


def taken(turns: SegmentTurns[str], can_run: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Take segments until none may start."""
    found = []
    while (segment := turns.take(can_run)) is not None:
        found.append(segment)
    return found


def test_a_new_job_starts_at_once_beside_a_big_one() -> None:
    turns = turns_of(*(f"big-{n}" for n in range(6)), express_slots=1)
    assert taken(turns) == ["big-0", "big-1"]
    turns.add("small", "small-0")
    turns.add("small", "small-1")
    assert taken(turns) == ["small-0"]


def test_the_next_free_slot_goes_to_the_job_with_the_fewest_segments_running() -> None:
    turns = turns_of(*(f"big-{n}" for n in range(6)), express_slots=1)
    assert taken(turns) == ["big-0", "big-1"]
    turns.add("other", "other-0")
    turns.add("new", "new-0")
    assert taken(turns) == ["other-0"]
    turns.end("big")
    assert taken(turns) == ["new-0"]


def test_jobs_with_as_many_segments_running_take_turns() -> None:
    turns = turns_of("a-0", "a-1", "b-0", "b-1", "c-0", slots=1)
    order = []
    for _ in range(5):
        (segment,) = taken(turns)
        order.append(segment)
        turns.end(segment[0])
    assert order == ["a-0", "b-0", "c-0", "a-1", "b-1"]


def test_urgent_jobs_come_first_without_starving_the_others() -> None:
    turns = turns_of(*(f"patient-{n}" for n in range(3)), slots=1)
    for n in range(7):
        turns.add("urgent", f"urgent-{n}", is_urgent=True)
    order = ""
    for _ in range(10):
        (segment,) = taken(turns)
        order += segment[0]
        turns.end(segment.partition("-")[0])
    assert order == "uuupuuupup"


def test_a_segment_that_no_host_can_run_does_not_block_other_jobs() -> None:
    turns = turns_of("a-0", "b-0", "b-1", slots=4)
    assert taken(turns, lambda segment: segment[0] == "b") == ["b-0", "b-1"]
    assert taken(turns) == ["a-0"]


def test_a_segment_that_was_lost_is_the_next_of_its_job_and_its_job_the_next() -> None:
    turns = turns_of("a-0", "a-1", "a-2", "b-0", slots=2)
    assert taken(turns) == ["a-0", "b-0"]
    turns.put_back("a", "a-0")
    assert taken(turns) == ["a-0"]
    turns.end("a")
    assert taken(turns) == ["a-1"]


def test_an_exclusive_job_waits_for_running_segments_and_no_other_segment_starts() -> None:
    turns = turns_of("a-0", "a-1", "suspect-0", "suspect-1", slots=4)
    turns.exclusive_job_id = "suspect"
    assert taken(turns) == ["suspect-0", "suspect-1"]
    turns.exclusive_job_id = None
    assert taken(turns) == ["a-0", "a-1"]
    turns.add("other", "other-0")
    turns.exclusive_job_id = "other"
    assert taken(turns) == []
    for job_id in ("a", "a", "suspect", "suspect"):
        turns.end(job_id)
    assert taken(turns) == ["other-0"]


def test_segments_that_wait_can_be_withdrawn() -> None:
    turns = turns_of("a-0", "b-0", "a-1", slots=1)
    assert taken(turns) == ["a-0"]
    assert turns.withdraw(lambda segment: segment[0] == "a") == ["a-1"]
    turns.end("a")
    assert taken(turns) == ["b-0"]
    assert turns.withdraw() == []


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def turns() -> JobTurns:
    return JobTurns(slots=3, trace_parts=lambda _: "", clock=Clock())


def begin(turns: JobTurns, make_job: Callable[..., Job], count: int) -> None:
    for _ in range(count):
        turns.note_started(make_job())


def test_every_fourth_job_to_start_is_a_batch_job(turns: JobTurns, make_job: Callable[..., Job]) -> None:
    for claims in range(2 * BATCH_JOB_TURN):
        (claim,) = turns.claims([], (), quarantined_waiting=False)
        is_batch_turn = claims % BATCH_JOB_TURN == BATCH_JOB_TURN - 1
        assert list(claim.priorities) == ([BATCH, INTERACTIVE] if is_batch_turn else [INTERACTIVE, BATCH])
        begin(turns, make_job, 1)


def test_one_slot_is_never_given_to_a_batch_job(turns: JobTurns) -> None:
    (claim,) = turns.claims([BATCH, BATCH], (), quarantined_waiting=False)
    assert list(claim.priorities) == [INTERACTIVE]
    assert turns.claims([BATCH, BATCH, INTERACTIVE], (), quarantined_waiting=False) == []


def test_jobs_of_models_without_room_are_skipped(turns: JobTurns) -> None:
    assert turns.claims([], {"large"}, quarantined_waiting=False) == [
        Claim((INTERACTIVE, BATCH), {"large"}, None, TRUSTED)
    ]


def test_a_quarantined_job_comes_first_and_then_no_other_job_starts(
    turns: JobTurns, make_job: Callable[..., Job]
) -> None:
    quarantined, other = turns.claims([], (), quarantined_waiting=True)
    assert (quarantined.deaths, other.deaths) == (QUARANTINED, TRUSTED)
    turns.note_started(make_job(deaths=2))
    assert turns.claims([INTERACTIVE], (), quarantined_waiting=True) == []
