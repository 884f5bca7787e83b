"""Sampling picks frames by id or time, and does not depend on how a video is cut."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.video.sampling import Sampling

TICK = Fraction(1, 1000)


def wanted(sampling: Sampling, pts: list[int], cuts: list[int] | None = None) -> list[int]:
    """The ids of the frames that are wanted, asked for piece by piece."""
    ids: list[int] = []
    for first, end in pairwise([0, *sorted(set(cuts or [])), len(pts)]):
        mask = sampling.wanted(
            first,
            np.array(pts[first:end], dtype=np.int64),
            previous_pts=pts[first - 1] if first else None,
            start_pts=pts[0],
            time_base=TICK,
        )
        ids += (first + np.flatnonzero(mask)).tolist()
    return ids


def at_rate(frames: int, fps: int, start: int = 500) -> list[int]:
    return [start + round(n * 1000 / fps) for n in range(frames)]


def test_the_default_wants_every_frame() -> None:
    assert wanted(Sampling(), at_rate(5, 25)) == [0, 1, 2, 3, 4]


def test_a_stride_counts_from_the_first_frame_of_the_video() -> None:
    assert wanted(Sampling(stride=4), at_rate(10, 25)) == [0, 4, 8]
    assert wanted(Sampling(stride=4, start_seconds=0.1), at_rate(10, 25)) == [4, 8]


def test_fps_takes_the_first_frame_of_each_period() -> None:
    assert wanted(Sampling(fps=5), at_rate(25, 25)) == [0, 5, 10, 15, 20]
    assert wanted(Sampling(fps=100), at_rate(4, 25)) == [0, 1, 2, 3]
    assert wanted(Sampling(fps=1), [0, 10, 20, 2500, 2600, 3000]) == [0, 3, 5]


def test_a_time_range_includes_its_start_and_not_its_end() -> None:
    sampling = Sampling(start_seconds=0.04, end_seconds=0.12)
    assert wanted(sampling, at_rate(10, 25)) == [1, 2]
    assert wanted(Sampling(start_seconds=100), at_rate(10, 25)) == []


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.lists(st.integers(1, 59)),
    st.sampled_from([Sampling(stride=3), Sampling(fps=4.0), Sampling(fps=29.97, start_seconds=0.7)]),
)
def test_the_cut_does_not_matter(steps: list[int], cuts: list[int], sampling: Sampling) -> None:
    pts = np.cumsum(steps).tolist()
    inside = [cut for cut in cuts if cut < len(pts)]
    assert wanted(sampling, pts) == wanted(sampling, pts, inside)


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"fps": 0.0}, {"stride": 2, "fps": 1.0}])
def test_senseless_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stride|fps"):
        Sampling(**wrong)
