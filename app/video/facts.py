"""What is known of a video once its container has been read."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The chosen video stream. Sizes are in pixels; `width` × `height` is the frame as displayed."""

    container: str  # FFmpeg's name of the demuxer: "mov", "matroska", "mpegts"
    codec: str  # FFmpeg's name: "h264", "hevc"
    pixel_format: str
    width: int  # as displayed: rotation applied
    height: int
    rotation_degrees: int  # clockwise turn that displays it upright: 0, 90, 180, 270
    time_base: Fraction  # seconds of one tick of a pts
    frame_rate: Fraction | None  # average, as the container tells; None if it does not
    duration_seconds: float | None  # as the container tells; not the truth about a damaged file
    stream_index: int
