"""The report on one video, as the engine stores it, the web side reads it and OpenAPI publishes it.

Imports neither torch nor a codec. The order of the fields is the order of the JSON's members.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from app.video.protocol.facts import Proof, StreamKind


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def is_absent(value: object) -> bool:
    """Whether a member is left out of the JSON, for fields that are absent rather than null."""
    return value is None


class StreamReport(_Report):
    """A stream of the container that is not read."""

    index: int = Field(description="of the stream in the container")
    kind: StreamKind = Field(description="what it holds")
    codec: str | None = Field(description="FFmpeg's name, or the container's tag if it has none")
    width: int | None = Field(description="pixels as stored, of a video")
    height: int | None = Field(description="the same")
    language: str | None = Field(description="as the container names it, often three letters")
    default: bool = Field(description="marked as the default of its kind")
    picture: bool = Field(description="a cover, a still picture or thumbnails, never taken for the video")


class VideoReport(_Report):
    """What is known of the video."""

    container: str = Field(description="FFmpeg's name of the format, such as mov or matroska")
    codec: str = Field(description="FFmpeg's name, such as h264")
    pixel_format: str = Field(description="FFmpeg's name, such as yuv420p")
    width: int = Field(description="pixels of the frame as displayed, rotation applied: those of the boxes")
    height: int = Field(description="the same")
    rotation_degrees: int = Field(description="the clockwise turn that displays it upright, in [0, 360)")
    mirrored: bool = Field(description="left and right are swapped before that turn")
    frame_rate: str | None = Field(
        description="average, a fraction such as 30000/1001, if the container declares it"
    )
    sample_aspect_ratio: str = Field(description="width by height of one pixel, a fraction")
    time_base: str = Field(description="seconds of one tick of a time stamp, a fraction such as 1/90000")
    start_seconds: float | None = Field(
        description="the container's time stamp of the first frame; null until the whole index is known, "
        "and if the frame has none"
    )
    duration_seconds: float | None = Field(description="from the first frame to the end of the last")
    stream: int = Field(description="index of the video stream that is read")
    other_streams: tuple[StreamReport, ...] = Field(description="at most 32 of those beside it")
    variable_frame_rate: bool | None = Field(
        default=None, exclude_if=is_absent, description="absent until the whole index is known"
    )


class ModelReport(_Report):
    """What analysed the frames."""

    name: str = Field(description="what a request's `model` calls it")
    sha256: str = Field(description="of all that decides what it finds")
    device: str = Field(description="the kind of device: cpu or cuda")
    labels: tuple[str, ...] = Field(description="all that it can find, in its own order")


class FrameIds(_Report):
    """A range of frames."""

    first: int = Field(description="frame id")
    last: int = Field(description="frame id, included")


class MissingFrames(FrameIds):
    """A range of frames that are not in the answer."""

    reason: str = Field(description="why they are not")


class DamageReport(_Report):
    """A place where the container has lost data, or seems to."""

    position: int | None = Field(description="bytes into the file, if known")
    seconds: float | None = Field(description="the container's time stamp of the last frame before it")
    first_frame: int | None = Field(description="likely range of the frames concerned: frame id")
    last_frame: int | None = Field(description="the same: frame id, included")
    reason: str = Field(description="what does not fit")
    observations: int = Field(description="how often something did not fit between two packets of the video")
    harmless: bool = Field(description="it is proven that no frame was lost here")


class Completeness(_Report):
    """Which frames are in the answer, which are not, and why."""

    complete: bool = Field(description="nothing that was asked for is missing, as far as anything can tell")
    frames_indexed: int = Field(
        description="frames of the video, lost ones included where a clock shows them"
    )
    frames_wanted: int = Field(description="of these, asked for by the sampling")
    frames_analysed: int = Field(description="frames in the answer")
    frames_undecodable: int = Field(description="wanted frames that are not in it")
    undecodable: tuple[MissingFrames, ...] = Field(description="which ones; the first 1000 ranges")
    undecodable_ranges_left_out: int = Field(description="further ranges of them")
    frames_corrupt: int = Field(description="analysed pictures that the decoder marks as damaged")
    corrupt: tuple[FrameIds, ...] = Field(description="which ones; the first 1000 ranges")
    frames_doubtful: int = Field(
        description="analysed pictures that follow a missing or damaged one, before the next keyframe"
    )
    doubtful: tuple[FrameIds, ...] = Field(description="which ones; the first 1000 ranges")
    frames_without_id: int = Field(
        description="where frames had to be counted: how many of them have data that gave no picture"
    )
    truncated: bool = Field(description="the file ends before the video does")
    damage: tuple[DamageReport, ...] = Field(description="where data was lost; the first 100 places")
    damage_left_out: int = Field(description="further places")
    proof: Proof = Field(
        description="what proves that no frame is missing: the container's table of samples, the stamps of a "
        "regular clock, or nothing but the absence of damage"
    )
    notes: tuple[str, ...] = Field(description="how a truncation, damage or odd time stamps showed, in words")


class DocumentReport(_Report):
    """The answer as it lies on disk: the pairs of frame id and boxes."""

    bytes: int = Field(description="its length")
    sha256: str = Field(description="of its bytes, hex")


class DetectionReport(_Report):
    """What is known of a video's run. A later report of the same run knows more."""

    model: ModelReport
    video: VideoReport | None = Field(default=None, description="null until the container is read")
    completeness: Completeness | None = Field(default=None, description="null until all frames are analysed")
    document: DocumentReport | None = Field(default=None, description="null until it is written")
