"""What is known of a video once its container has been read. Loads little: web workers use the names, too."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction


class StreamKind(StrEnum):
    """What a stream of a container holds. Decoder processes send the position in this list."""

    VIDEO = "video"
    AUDIO = "audio"
    SUBTITLE = "subtitle"
    DATA = "data"
    ATTACHMENT = "attachment"
    UNKNOWN = "unknown"


class Proof(StrEnum):
    """What proves that no frame is missing from an index."""

    TABLE = "table"  # the container lists its samples
    CLOCK = "clock"  # time stamps are those of a regular clock without a gap
    NONE = "none"


@dataclass(frozen=True, slots=True)
class OtherStream:
    """A stream of the container that is not read."""

    index: int
    kind: StreamKind
    codec: str  # FFmpeg's name, or the container's tag of one that FFmpeg does not know; "" if there is none
    width: int = 0  # pixels of a video as stored; 0 where the container does not tell
    height: int = 0
    language: str = ""
    is_default: bool = False
    is_picture: bool = False  # a cover, a still or thumbnails


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The chosen video stream. Sizes are in pixels; `width` × `height` is the frame as displayed.

    Pixels need not be square: boxes are in pixels of the decoded frame, and `sample_aspect_ratio` says how
    much wider than high to show a pixel.
    """

    container: str  # FFmpeg's name of the demuxer: "mov", "matroska", "mpegts"
    codec: str  # FFmpeg's name: "h264", "hevc"
    pixel_format: str
    width: int  # as displayed: rotation applied
    height: int
    rotation_degrees: int  # clockwise turn that displays it upright, [0, 360)
    time_base: Fraction  # seconds of one tick of a pts
    frame_rate: Fraction | None  # average, as declared by the container; None if unknown
    duration_seconds: float | None  # as declared; wrong for a damaged file
    stream_index: int
    mirrored: bool = False  # left and right are swapped before that turn
    sample_aspect_ratio: Fraction = Fraction(1)  # width / height of one pixel as stored
    other_streams: tuple[OtherStream, ...] = ()  # 32 at most
