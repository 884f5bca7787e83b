"""Sampling: which frames of a video are analysed. Frame ids stay those of the whole video."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
PtsArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every `stride`-th frame, or the first frame of every 1/`fps` s, from `start_seconds` to `end_seconds`.

    Times count from the video's first frame; `end_seconds` is exclusive. The default wants every frame.
    """

    stride: int | None = None  # frames whose id is a multiple of it
    fps: float | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride and fps exclude each other")
        if self.stride is not None and self.stride < 1:
            raise ValueError("stride must be at least 1")
        if self.fps is not None and not self.fps > 0:
            raise ValueError("fps must be greater than 0")

    def wanted(
        self,
        first_frame_id: int,
        pts: PtsArray,
        *,
        previous_pts: int | None,
        start_pts: int,
        time_base: Fraction,
    ) -> BoolArray:
        """Return which of the frames from `first_frame_id` on, with stamps `pts` (n,), are wanted, (n,) bool.

        `previous_pts` is the stamp of the frame before them, None if there is none; `start_pts` is that of
        the video's first frame. The answer for a frame does not depend on how the video is cut.
        """
        mask = np.ones(len(pts), dtype=np.bool_)
        if self.start_seconds is not None:
            mask &= pts >= _first_tick_at(self.start_seconds, start_pts, time_base)
        if self.end_seconds is not None:
            mask &= pts < _first_tick_at(self.end_seconds, start_pts, time_base)
        if self.stride is not None:
            ids = np.arange(first_frame_id, first_frame_id + len(pts))
            mask &= ids % self.stride == 0
        if self.fps is not None:
            per_tick = time_base * Fraction(self.fps).limit_denominator(1_000_000)
            farthest = (
                max(abs(int(pts.min()) - start_pts), abs(int(pts.max()) - start_pts)) if len(pts) else 0
            )
            is_small = (
                max(farthest * per_tick.numerator, per_tick.denominator) < 2**62 and abs(start_pts) < 2**62
            )
            ticks = pts if is_small else pts.astype(object)  # which counts without a limit, and slowly
            periods = (ticks - start_pts) * per_tick.numerator // per_tick.denominator
            opens = np.ones(len(pts), dtype=np.bool_)  # the frames that are the first of their period
            opens[1:] = periods[1:] != periods[:-1]
            if previous_pts is not None and len(pts):
                before = (previous_pts - start_pts) * per_tick.numerator // per_tick.denominator
                opens[0] = int(periods[0]) != before
            mask &= opens
        return mask


def _first_tick_at(seconds: float, start_pts: int, time_base: Fraction) -> int:
    ticks = Fraction(seconds).limit_denominator(1_000_000) / time_base
    tick = start_pts - (-ticks.numerator // ticks.denominator)  # rounded up
    return max(-(2**63), min(tick, 2**63 - 1))
