"""How long a job will take: right soon after its start, and after others came or went."""

from __future__ import annotations

import pytest

from app.pipeline.pace import FrameMeter, Pace


def run(
    pace: Pace, frames_per_second: float, seconds: int, *, start: float, frames: int, batch: int = 16
) -> int:
    """Note a job's frames once a second, counted in whole batches; return how many there are then."""
    for second in range(1, seconds + 1):
        exact = frames + frames_per_second * second
        pace.note(int(exact // batch) * batch, start + second)
    return frames + round(frames_per_second * seconds)


def test_nothing_is_said_before_frames_have_come():
    pace = Pace()
    for second in range(30):
        pace.note(0, float(second))
    assert pace.seconds_for(100) is None
    pace.note(50, 30.0)
    assert pace.seconds_for(100) is None  # how long these took nobody knows


@pytest.mark.parametrize("frames_per_second", [3.0, 20.0, 900.0])
def test_a_slow_start_is_forgotten_within_a_tenth(frames_per_second: float):
    """Ten seconds in which nothing flows, of two hundred; then a steady flow in batches."""
    pace = Pace()
    for second in range(10):
        pace.note(0, float(second))
    run(pace, frames_per_second, 20, start=10.0, frames=0)
    assert pace.seconds_for(round(170 * frames_per_second)) == pytest.approx(170.0, rel=0.2)


def test_a_job_that_gets_half_the_devices_knows_it_before_long():
    pace = Pace()
    frames = run(pace, 100.0, 100, start=0.0, frames=0)
    run(pace, 50.0, 150, start=100.0, frames=frames)
    assert pace.seconds_for(5000) == pytest.approx(100.0, rel=0.2)


def test_a_job_that_stands_still_takes_ever_longer():
    pace = Pace()
    frames = run(pace, 100.0, 100, start=0.0, frames=0)
    run(pace, 0.0, 300, start=100.0, frames=frames)
    assert (pace.seconds_for(100) or 0.0) > 5.0


def test_a_clock_that_stands_still_is_no_reason_to_fail():
    pace = Pace()
    for _ in range(3):
        pace.note(10, 5.0)
    assert pace.seconds_for(1) is None


def test_a_meter_counts_each_job_until_it_is_forgotten():
    meter = FrameMeter()
    meter.add("a", 3)
    meter.add("a", 4)
    meter.add("b", 1)
    assert (meter.of("a"), meter.of("b"), meter.of("c")) == (7, 1, 0)
    meter.forget("a")
    meter.forget("never seen")
    assert (meter.of("a"), meter.of("b")) == (0, 1)
