"""A job's record: one request from its acceptance to its end."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from enum import StrEnum

from app.errors import Problem
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.storage.ingest import FileIdentity

OWNER = "default"  # of everything, until callers are told apart


class JobState(StrEnum):
    """queued → running → succeeded | failed | cancelled, or queued → cancelled. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Priority(StrEnum):
    """Which jobs start first. No class starves: see `app/engine/turns.py`."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Waiting(StrEnum):
    """Why a queued job does not start, other than that others are before it."""

    DISK_SPACE = "disk_space"
    SOURCE = "source"  # its video is being fetched
    MODEL_MEMORY = "model_memory"  # models in use hold the memory that its model needs


class SourceKind(StrEnum):
    """How a video arrives. Also the names of a JSON body's members."""

    UPLOAD = "upload"  # it was sent, and is in the job's folder until the job ends
    PATH = "path"  # it is a file of an ingest folder, and is read there
    URL = "url"  # it is fetched from another server into the job's folder


def content_key_of(sha256: str) -> str:
    return f"sha256 {sha256}"


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A job's video."""

    size_bytes: int | None  # None: unknown before it is fetched
    sha256: str | None  # hex, of the bytes received; None: not computed
    name: str | None  # the client's file name, as given, at most 255 characters; for display only
    kind: SourceKind = SourceKind.UPLOAD
    address: str | None = None  # of what was not uploaded, as given; of a URL without its query
    identity: FileIdentity | None = None  # of a file in an ingest folder
    received_bytes: int | None = None  # of a video that is fetched, so far
    address_sha256: str | None = None  # hex, of a whole URL
    url: str | None = field(default=None, repr=False, compare=False)  # whole; None when read from the store

    @property
    def claim(self) -> str | None:
        """How a request identifies its video: the address that it names, or the digest of what it sent."""
        return self.sha256 if self.address is None else f"{self.kind} {self.address_sha256 or self.address}"

    @property
    def content_key(self) -> str | None:
        """A text that is equal for the same bytes only; None for what has not been fetched or hashed."""
        if self.sha256 is not None:
            return content_key_of(self.sha256)
        if self.identity is None:
            return None
        return f"{self.kind} {astuple(self.identity)} {self.address}"


class DeliveryState(StrEnum):
    """pending → delivered | given_up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Callback:
    """The address to which a job's end is delivered."""

    url: str = field(repr=False)  # whole
    shown: str  # without the query, which may hold secrets


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of a job's end to one address. Times are Unix seconds."""

    id: str  # the same for every attempt: the header webhook-id
    shown: str  # the address without its query
    state: DeliveryState
    attempts: int
    last_status: int | None  # of the last answer, if there was one
    last_error: str | None
    next_at: float | None  # when the next attempt is due; None before the job's end, and after the last one
    delivered_at: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress in segments whose parts are on disk; `frames_reached` counts the others too."""

    frames_done: int = 0  # analysed
    frames_total: int | None = None  # frames to analyse; None until the index is whole
    segments_done: int = 0
    segments_total: int | None = None
    frames_missing: int = 0  # could not be analysed; frames_total counts them too
    frames_reached: int = 0  # settled, or analysed in unfinished segments; written once a second by itself

    @property
    def frames_settled(self) -> int:
        """Frames that need no more work."""
        return self.frames_done + self.frames_missing

    @property
    def frames_in_progress(self) -> int:
        """Frames analysed in unfinished segments, never more than are left of the total."""
        in_progress = self.frames_reached - self.frames_settled  # less than 0: a segment has ended since
        left = in_progress if self.frames_total is None else self.frames_total - self.frames_settled
        return max(0, min(in_progress, left))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The engine's last estimate for a running job."""

    seconds_left: float
    made_at: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Advance:
    """The progress of a running job between two segments, as the engine writes it once a second."""

    frames_reached: int  # settled, or analysed in unfinished segments
    frames_total: int | None  # None: not known yet
    segments_total: int | None
    seconds_left: float | None  # None: not known


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the store, as read. Times are Unix seconds."""

    id: str
    owner: str
    state: JobState
    request_id: str
    model: str
    options: DetectionOptions
    source: VideoSource
    created_at: float
    started_at: float | None
    finished_at: float | None
    progress: Progress
    cancel_requested: bool
    problem: Problem | None  # why it failed
    report: DetectionReport | None  # of a running job: filled in as more is known
    priority: Priority = Priority.BATCH
    waiting: Waiting | None = None
    estimate: Estimate | None = None  # of this run's end
    deaths: int = 0  # of engines and hosts in a row while they ran it, without a new part
    hangs: int = 0  # how often a model timed out on it
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Everything that a request asks for except the video."""

    owner: str
    request_id: str
    model: str
    options: DetectionOptions
    priority: Priority = Priority.BATCH
    idempotency_key: str | None = None
    model_sha256: str | None = None  # of the model that the engine has now; None: unknown
    may_attach: bool = False  # the answer of an equal job may be returned
    callback: Callback | None = None
