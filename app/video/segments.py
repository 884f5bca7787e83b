"""Segments: runs of frames cut at keyframes; the unit of decoding, memory, retry and resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The frames `first_frame_id` … `first_frame_id + len(pts) - 1` of a video, in presentation order."""

    number: int  # 0-based, in presentation order, without gaps
    first_frame_id: int
    pts: npt.NDArray[np.int64]  # (n,) ascending, ticks of VideoFacts.time_base: the frames it owns

    @property
    def frame_count(self) -> int:
        return len(self.pts)
