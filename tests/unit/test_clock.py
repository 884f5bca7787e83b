"""A regular clock is told from a variable one, and how many frames a gap lacks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.video.clock import FrameClock

RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50), Fraction(60)]


def steps_of(rate: Fraction, ticks_a_second: int, frames: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Steps between frames whose time stamps are rounded to the container's ticks."""
    return np.diff([round(n * ticks_a_second / rate) for n in range(frames)]).astype(np.int64)


def learnt(clock: FrameClock, steps: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FrameClock:
    at = 0
    while at < len(steps):
        regular = clock.regular_prefix(steps[at:])
        clock.add_regular(steps[at : at + regular])
        at += regular
        if at < len(steps):
            clock.add_odd(int(steps[at]))
            at += 1
    return clock


@given(
    st.sampled_from(RATES),
    st.sampled_from([1000, 90000, 12800]),
    st.booleans(),
    st.integers(20, 300),
    st.integers(1, 400),
)
def test_frames_that_a_gap_lacks_are_counted_exactly(
    rate: Fraction, ticks_a_second: int, is_claimed: bool, before: int, missing: int
) -> None:
    clock = FrameClock(ticks_a_second / rate if is_claimed else None)
    learnt(clock, steps_of(rate, ticks_a_second, before))
    assert clock.is_unbroken
    stamps = [round(n * ticks_a_second / rate) for n in (before - 1, before + missing)]
    found = clock.missing_in(stamps[1] - stamps[0])
    # Without the exact rate a long gap after few frames may be ambiguous: then it is not counted at all.
    assert found == missing or (not is_claimed and found == 0 and missing > before)


def test_a_wrong_claim_of_the_container_is_given_up_without_harm() -> None:
    clock = learnt(FrameClock(Fraction(1800)), np.full(20, 3600, dtype=np.int64))
    assert clock.is_unbroken
    assert clock.missing_in(4 * 3600) == 3


@pytest.mark.parametrize(
    "steps",
    [[40] * 5, [40, 80] * 20, list(range(40, 80)), [40] * 30 + [200, 90]],
    ids=["too few", "telecine", "accelerating", "odd steps"],
)
def test_an_irregular_clock_tells_nothing_of_a_gap(steps: list[int]) -> None:
    assert not learnt(FrameClock(None), np.array(steps, dtype=np.int64)).missing_in(400)


def test_a_step_back_and_the_one_that_leads_on_from_there_hide_no_gap() -> None:
    clock = learnt(FrameClock(Fraction(40)), np.full(100, 40, dtype=np.int64))
    clock.add_odd(-1600)
    assert not clock.missing_in(1680)
    clock.add_odd(1680)
    assert clock.missing_in(120) == 2


def test_a_gap_that_is_no_whole_number_of_steps_lacks_no_frame() -> None:
    clock = learnt(FrameClock(Fraction(3600)), np.full(100, 3600, dtype=np.int64))
    assert not clock.missing_in(9000)
    assert not clock.missing_in(3600)
