"""A program that crashes again and again waits before it starts, but never for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.restarts import PAUSES_SECONDS, STEADY_SECONDS, pause_before_start


class Clock:
    """A clock that `sleep` moves on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def start(record: Path, clock: Clock, *, then_run_for: float) -> float:
    pause_before_start(record, clock=clock, sleep=clock.sleep)
    clock.now += then_run_for
    return clock.pauses[-1]


def test_pauses_grow_to_a_bound_and_stay_there(tmp_path: Path, clock: Clock):
    pauses = [start(tmp_path / "a", clock, then_run_for=3.0) for _ in range(50)]
    assert pauses[: len(PAUSES_SECONDS)] == [*PAUSES_SECONDS]
    assert set(pauses[len(PAUSES_SECONDS) :]) == {max(PAUSES_SECONDS)}


def test_a_program_that_ran_long_enough_starts_at_once(tmp_path: Path, clock: Clock):
    for _ in range(10):
        start(tmp_path / "a", clock, then_run_for=1.0)
    start(tmp_path / "a", clock, then_run_for=STEADY_SECONDS + 1)
    assert start(tmp_path / "a", clock, then_run_for=1.0) == 0.0
    assert start(tmp_path / "a", clock, then_run_for=1.0) > 0.0


@pytest.mark.parametrize("text", ["", "3", "three 5.0", "\xff"])
def test_a_record_that_a_full_disk_truncated_costs_only_a_pause(tmp_path: Path, clock: Clock, text: str):
    (tmp_path / "a").write_bytes(text.encode("latin-1"))
    assert start(tmp_path / "a", clock, then_run_for=1.0) == max(PAUSES_SECONDS)
    (tmp_path / "b").mkdir()  # can be neither read nor written
    assert start(tmp_path / "b", clock, then_run_for=1.0) == max(PAUSES_SECONDS)
