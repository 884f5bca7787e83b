"""The shapes of JSON answers, for the OpenAPI document. Tests hold real answers against them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from app.jobs.job import DeliveryState, JobState, Priority, SourceKind, Waiting

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Box(_Shape):
    """One object in one frame."""

    box: tuple[float, float, float, float] = Field(
        description="x_min, y_min, x_max, y_max in pixels of the frame as displayed"
    )
    label: str
    score: float = Field(ge=0, le=1)


class FrameTime(_Shape):
    """When a frame is shown; with `times=true`."""

    pts_seconds: float = Field(
        description="the time stamp in seconds, 6 decimals, as ffprobe's pts_time: from the container's own "
        "zero, so the first frame's need not be 0"
    )


class Document(RootModel[list[tuple[int, list[Box]] | tuple[int, list[Box], FrameTime]]]):
    """Pairs of frame id (0-based, in presentation order) and boxes, best score first, in frame order.

    With `times=true` each has a third member.
    """


class Progress(_Shape):
    frames_done: int = Field(description="frames that are analysed: they are in the answer")
    frames_missing: int = Field(description="frames found to be missing so far: see completeness")
    frames_total: int | None = Field(
        description="frames to be analysed, missing ones too; null until the whole index is known"
    )
    segments_done: int
    segments_total: int | None
    fraction: float | None = Field(ge=0, le=1, description="of the work, so done and missing of total")
    seconds_left: float | None = Field(description="at the pace of the last minutes, while the job runs")


class OtherStream(_Shape):
    """A stream of the container that is not read."""

    index: int
    kind: Literal["video", "audio", "subtitle", "data", "attachment", "unknown"]
    codec: str | None = Field(description="FFmpeg's name, or the container's tag if it has none")
    width: int | None = Field(description="pixels as stored, of a video")
    height: int | None
    language: str | None
    default: bool = Field(description="marked as the default of its kind")
    picture: bool = Field(description="a cover, a still picture or thumbnails, never taken for the video")


class Video(_Shape):
    """What is known of the video."""

    container: str = Field(description="FFmpeg's name of the format, such as mov or matroska")
    codec: str = Field(description="FFmpeg's name, such as h264")
    pixel_format: str = Field(description="FFmpeg's name, such as yuv420p")
    width: int = Field(description="pixels of the frame as displayed, rotation applied: those of the boxes")
    height: int = Field(description="the same")
    rotation_degrees: int = Field(description="the clockwise turn that displays it upright, in [0, 360)")
    mirrored: bool = Field(description="left and right are swapped before that turn")
    stream: int = Field(description="index of the video stream that is read")
    other_streams: list[OtherStream] = Field(description="at most 32 of those beside it")
    frame_rate: str | None = Field(
        description="average, a fraction such as 30000/1001, if the container tells"
    )
    sample_aspect_ratio: str = Field(description="width by height of one pixel, a fraction")
    time_base: str = Field(description="seconds of one tick of a time stamp, a fraction such as 1/90000")
    start_seconds: float | None = Field(
        description="the container's time stamp of the first frame; null until the whole index is known, "
        "and if the frame has none"
    )
    duration_seconds: float | None = Field(description="from the first frame to the end of the last")
    variable_frame_rate: bool | None = Field(
        default=None, description="absent until the whole index is known"
    )


class Model(_Shape):
    """What analysed the frames."""

    name: str
    sha256: str = Field(description="of all that decides what it finds")
    device: str = Field(description="the kind of device: cpu or cuda")
    labels: list[str] = Field(description="all that it can find, in its own order")


class FrameIds(_Shape):
    first: int = Field(description="frame id")
    last: int = Field(description="frame id, included")


class MissingFrames(FrameIds):
    reason: str


class DamagedPlace(_Shape):
    """A place where the container has lost data, or seems to."""

    position: int | None = Field(description="bytes into the file, if known")
    seconds: float | None = Field(description="the container's time stamp of the last frame before it")
    first_frame: int | None = Field(description="likely range of the frames concerned")
    last_frame: int | None
    reason: str = Field(description="what does not fit")
    observations: int = Field(description="how often something did not fit between two packets of the video")
    harmless: bool = Field(description="it is proven that no frame was lost here")


class Completeness(_Shape):
    """Which frames are in the answer, which are not, and why."""

    complete: bool = Field(description="nothing that was asked for is missing, as far as anything can tell")
    frames_indexed: int = Field(
        description="frames of the video, lost ones included where a clock tells them"
    )
    frames_wanted: int = Field(description="of these, asked for by the sampling")
    frames_analysed: int = Field(description="frames in the answer")
    frames_undecodable: int = Field(description="wanted frames that are not in it")
    undecodable: list[MissingFrames] = Field(description="which ones; the first 1000 ranges")
    undecodable_ranges_left_out: int
    frames_corrupt: int = Field(description="analysed pictures that the decoder marks as damaged")
    corrupt: list[FrameIds] = Field(description="which ones; the first 1000 ranges")
    frames_doubtful: int = Field(
        description="analysed pictures that follow a missing or damaged one, before the next keyframe"
    )
    doubtful: list[FrameIds] = Field(description="which ones; the first 1000 ranges")
    frames_without_id: int = Field(
        description="where frames had to be counted: data of so many gave no picture"
    )
    truncated: bool = Field(description="the file ends before the video does")
    damage: list[DamagedPlace] = Field(description="where data was lost; the first 100 places")
    damage_left_out: int
    proof: Literal["table", "clock", "none"] = Field(
        description="what proves that no frame is missing: the container's table of samples, the stamps of a "
        "regular clock, or nothing but the absence of damage"
    )
    notes: list[str]


class Source(_Shape):
    kind: SourceKind
    name: str | None = Field(description="the client's file name, of a form")
    address: str | None = Field(
        description="of a video that was not uploaded: its path, or its URL without the query"
    )
    bytes: int | None = Field(description="null while the video is being fetched, and its size is not known")
    sha256: Sha256 | None = Field(description="null where the video is read where it lies, or not yet there")
    received_bytes: int | None = Field(description="of a video that is fetched from a URL, so far")


class CallbackReport(_Shape):
    """How far the telling of a job's end is."""

    id: str = Field(description="the header webhook-id, the same in every attempt")
    address: str = Field(description="without the query")
    state: DeliveryState
    attempts: int
    last_status: int | None = Field(description="what the receiver answered last, if it did")
    last_error: str | None
    next_attempt_at: datetime | None
    delivered_at: datetime | None


class Links(_Shape):
    self: str
    events: str
    result: str | None = Field(default=None, description="once the job has succeeded")


class Problem(BaseModel):
    """A problem document of RFC 9457; further members depend on the code."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str = Field(description="stable; see /docs/errors")
    detail: str
    request_id: str | None = None
    instance: str | None = None


class JobReport(_Shape):
    """A job: where it stands, what its video is, whether its answer is complete."""

    id: JobId
    state: JobState
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested: bool
    priority: Priority
    waiting: Waiting | None = Field(description="why a queued job is not taken up")
    progress: Progress
    options: dict[str, Any] = Field(description="the options that were given, and the model that runs")
    source: Source
    video: Video | None
    model: Model | None
    completeness: Completeness | None
    document: dict[str, Any] | None = Field(description="bytes and sha256 of the pairs")
    problem: dict[str, Any] | None = Field(description="why the job failed")
    callbacks: list[CallbackReport] = Field(description="where the job's end is told, and how far that is")
    links: Links


class JobList(_Shape):
    jobs: list[JobReport] = Field(description="newest first")
    next: str | None = Field(description="address of the next page")


class ModelList(_Shape):
    default: str
    models: list[dict[str, Any]] = Field(
        description="name, sha256, labels, input size, default score, device, precision and its effect on "
        "boxes, batch size, frames per second, memory, loaded or not"
    )
    refused: list[dict[str, Any]] = Field(
        description="models that are there and cannot be asked for: their names, and why"
    )


class Alive(_Shape):
    alive: Literal[True]


class Readiness(_Shape):
    ready: Literal[True]
    checks: dict[str, Any]


SHAPES: tuple[type[BaseModel], ...] = (
    Document,
    OtherStream,
    JobReport,
    JobList,
    ModelList,
    Alive,
    Readiness,
    Problem,
)
