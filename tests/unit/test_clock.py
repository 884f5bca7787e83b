"""A regular clock is told from a variable one, and how many frames a gap lacks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.video.clock import FrameClock, likely_stamp

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
    assert found == missing or (not is_claimed and found is None and missing > before)


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


def test_frames_that_damage_has_put_in_are_taken_up_by_the_next_gap() -> None:
    clock = learnt(FrameClock(Fraction(40)), np.full(100, 40, dtype=np.int64))
    assert clock.missing_in(20) is None
    assert clock.missing_in(20) is None  # two frames in one step
    assert clock.missing_in(160) == 2  # three are missing, and one is there already
    assert clock.missing_in(160) == 3


def test_a_step_back_and_the_one_that_leads_on_from_there_hide_no_gap() -> None:
    clock = learnt(FrameClock(Fraction(40)), np.full(100, 40, dtype=np.int64))
    assert clock.missing_in(-1600) is None
    assert clock.missing_in(1680) == 0
    assert clock.missing_in(120) == 2


def test_a_claim_that_the_first_frames_confirm_holds_from_the_first_one_on() -> None:
    stamps = [*range(0, 80, 40), *range(200, 1600, 40), None]
    clock = FrameClock(Fraction(40))
    clock.confirm_claim(stamps)
    clock.add_regular(np.array([40], dtype=np.int64))
    assert clock.missing_in(160) == 3
    contradicted = FrameClock(Fraction(40))
    contradicted.confirm_claim(range(0, 1600, 33))
    assert contradicted.missing_in(160) is None


def test_odd_steps_at_damage_do_not_make_a_clock_irregular() -> None:
    clock = learnt(FrameClock(Fraction(40)), np.full(20, 40, dtype=np.int64))
    clock.add_odd(55, is_damaged=True)
    assert clock.missing_in(120) == 2
    assert not clock.is_unbroken
    clock.add_odd(55)
    assert clock.missing_in(120) is None


@given(st.sets(st.integers(0, 39), max_size=20), st.integers(0, 39), st.integers(-50, 90))
def test_stamps_that_damage_took_away_or_moved_are_found_again(
    taken: set[int], moved: int, place: int
) -> None:
    right = list(range(0, 400, 10))
    stamps: list[int | None] = [None if n in taken else pts for n, pts in enumerate(right)]
    stamps[moved] = 10 * place  # before, behind or among the others
    stamps += range(400, 800, 10)
    found = [-10]
    for n in range(len(right)):
        found.append(likely_stamp(found[-1], stamps[n : n + 33], 10))
    del found[0]
    # Of a stamp and its neighbour, which are the wrong way round, either may be the wrong one.
    is_off = [n for n, pts in enumerate(right) if found[n] != pts]
    assert all(abs(n - moved) <= 1 + len(taken) for n in is_off)
    assert found[-1] == right[-1] or moved >= 38
    assert sorted(found) == found


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([10, 20, 30], 10),
        ([None, 20, 30], 10),
        ([40, 20, 30, 40, 50], 10),  # moved forward
        ([-5, 20, 30, 40], 10),  # moved backward
        ([None, 10, 20, 30], 5),  # one more than the clock has room for
        ([500, 510, 520], 500),  # the clock has jumped
        ([-90, -80, -70], -90),
        ([None, None], 10),
    ],
)
def test_the_likely_stamp_of_a_frame_near_damage(stamps: list[int | None], expected: int) -> None:
    assert likely_stamp(0, stamps, 10) == expected


def test_a_gap_that_is_no_whole_number_of_steps_lacks_no_frame() -> None:
    clock = learnt(FrameClock(Fraction(3600)), np.full(100, 3600, dtype=np.int64))
    assert clock.missing_in(3600) == 0
    assert clock.missing_in(9000) is None
