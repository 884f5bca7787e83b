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


class Document(RootModel[list[tuple[int, list[Box]]]]):
    """Pairs of frame id (0-based, in presentation order) and boxes, best score first, in frame order."""


class Progress(_Shape):
    frames_done: int
    frames_total: int | None = Field(description="null until the whole index is known")
    segments_done: int
    segments_total: int | None
    fraction: float | None = Field(ge=0, le=1)
    seconds_left: float | None = Field(description="at the pace of the last minutes, while the job runs")


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
    video: dict[str, Any] | None = Field(
        description="container, codec, size as displayed, frame rate, duration. rotation_degrees: the "
        "clockwise turn that displays it, in [0, 360); mirrored: left and right are swapped before that "
        "turn. stream: index of the video stream that is read; other_streams: at most 32 of those beside "
        "it, each an OtherStream"
    )
    model: dict[str, Any] | None = Field(description="name, sha256, device")
    completeness: dict[str, Any] | None = Field(
        description="complete or not; frames indexed, wanted, decoded, analysed, undecodable and why"
    )
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
