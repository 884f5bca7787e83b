"""What the pipeline gets from the decoder pool: what an index has found, batches of frames, and outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.video.damage import DamagedPlace
from app.video.protocol.facts import Proof
from app.video.segments import FrameRange, RangeList

Cancelled = Callable[[], bool]


class WorkCancelled(Exception):
    """The caller's `cancelled` returned true."""


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """The result of a complete pass over the packets."""

    frames_indexed: int  # displayable frames that the container tells of
    frames_wanted: int  # of these, asked for by the sampling
    segments: int
    start_pts: int | None  # of the first frame, in ticks of VideoFacts.time_base; None if it has none
    duration_seconds: float | None  # from the first frame's time stamp to the end of the last frame
    variable_frame_rate: bool
    truncated: bool
    frames_without_id: int  # where frames had to be counted: those of which data is there and no picture came
    notes: tuple[str, ...]  # how a truncation, damage or odd time stamps showed, for the report
    lost: RangeList  # wanted frames of which the container holds nothing; they are in no segment
    damage: tuple[DamagedPlace, ...]  # the first places where the container has lost data
    damage_total: int  # places
    is_damage_harmless: bool  # it is proven that no frame was lost at any of them
    leading_frames: int  # shown before the first clean keyframe: they may need what the file never held
    proof: Proof


@dataclass(frozen=True, slots=True)
class DecodeOutcome:
    """What happened to the wanted frames of a segment."""

    frames_decoded: int
    undecodable: tuple[FrameRange, ...] = ()  # ascending
    corrupt: tuple[FrameRange, ...] = ()  # decoded, but from damaged data according to the decoder
    # Decoded, but after a missing or corrupt frame and before a keyframe.
    doubtful: tuple[FrameRange, ...] = ()


@dataclass(slots=True, eq=False)
class FrameBatch:
    """Decoded frames, in order and of one source size, in memory that the consumer holds until `release`."""

    frame_ids: npt.NDArray[np.int64]  # (n,) ascending
    pts: npt.NDArray[np.int64]  # (n,) ticks of VideoFacts.time_base
    frames: npt.NDArray[np.uint8]  # (n, height, width, 3) uint8 RGB, a view into the ring
    source_size: tuple[int, int]  # (width, height) as displayed, to map boxes back to
    on_release: Callable[[], None] | None

    def __len__(self) -> int:
        return len(self.frame_ids)

    def release(self) -> None:
        """Give the memory back to the decoder. Do not read `frames` afterwards. May be called twice."""
        on_release, self.on_release = self.on_release, None
        if on_release is not None:
            on_release()
