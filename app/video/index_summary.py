"""What is known about a video after its index is complete."""

from __future__ import annotations

from dataclasses import dataclass

from app.video.damage import DamagedPlace
from app.video.protocol.kinds import Proof
from app.video.segments import FrameRanges


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
    lost: FrameRanges  # wanted frames of which the container holds nothing; they are in no segment
    damage: tuple[DamagedPlace, ...]  # the first places where the container has lost data
    damage_total: int  # places
    is_damage_harmless: bool  # it is proven that no frame was lost at any of them
    leading_frames: int  # shown before the first clean keyframe: they may need what the file never held
    proof: Proof
