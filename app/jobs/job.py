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
    """Who is served first. No class starves: see `app/engine/turns.py`."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Waiting(StrEnum):
    """Why a queued job is not taken up, beyond that others are before it."""

    DISK_SPACE = "disk_space"
    SOURCE = "source"  # its video is being fetched
    MODEL_MEMORY = "model_memory"  # models in use hold the room that its model needs


class SourceKind(StrEnum):
    """How a video is given. Also the names of a JSON body's members."""

    UPLOAD = "upload"  # it was sent, and lies in the job's folder until the job ends
    PATH = "path"  # it is a file of an ingest folder, and is read there
    URL = "url"  # it is fetched from another server, and then lies in the job's folder


def content_key_of(sha256: str) -> str:
    return f"sha256 {sha256}"


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A job's video."""

    size_bytes: int | None  # None: not known before it is fetched
    sha256: str | None  # hex, of the bytes received; None: nobody has read them all
    name: str | None  # the client's file name, as given, at most 255 characters; for display alone
    kind: SourceKind = SourceKind.UPLOAD
    address: str | None = None  # of what was not uploaded, as given; of a URL without its query
    identity: FileIdentity | None = None  # of a file that is read where it lies
    received_bytes: int | None = None  # of what is fetched, so far and for good
    address_sha256: str | None = None  # hex, of a whole URL
    url: str | None = field(default=None, repr=False, compare=False)  # whole; None when read from the store

    @property
    def claim(self) -> str | None:
        """What a request says that its video is: what it names, or the digest of what it sent."""
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
    """Where a job's end is to be told."""

    url: str = field(repr=False)  # whole
    shown: str  # without the query, in which secrets are


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far the telling of a job's end is, to one server. Times are Unix seconds."""

    id: str  # the same for every attempt: the header webhook-id
    shown: str  # the address without its query
    state: DeliveryState
    attempts: int
    last_status: int | None  # what the server answered, if it did
    last_error: str | None
    next_at: float | None  # of the next attempt; None before the job's end, and when there will be none
    delivered_at: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the segments whose parts are on disk; `frames_reached` counts the others too."""

    frames_done: int = 0  # analysed
    frames_total: int | None = None  # frames to analyse; None until the index is whole
    segments_done: int = 0
    segments_total: int | None = None
    frames_missing: int = 0  # that could not be analysed; frames_total counts them too
    frames_reached: int = 0  # settled, or analysed in unfinished segments; written once a second by itself

    @property
    def frames_settled(self) -> int:
        """Frames with which nothing is left to do."""
        return self.frames_done + self.frames_missing

    @property
    def frames_in_progress(self) -> int:
        """Frames that are analysed in unfinished segments: never more than are left of the total."""
        in_progress = self.frames_reached - self.frames_settled  # less than 0: a segment has ended since
        left = in_progress if self.frames_total is None else self.frames_total - self.frames_settled
        return max(0, min(in_progress, left))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the engine last thought of a running job's end."""

    seconds_left: float
    made_at: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a running job is between two segments, as the engine writes once a second."""

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
    report: DetectionReport | None  # a running job's knows more and more
    priority: Priority = Priority.BATCH
    waiting: Waiting | None = None
    estimate: Estimate | None = None  # of this run's end
    deaths: int = 0  # engines and hosts that died in a row while they ran it, and it got no further
    hangs: int = 0  # how often a model gave no answer at it
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What is asked for, but for the video: what makes two requests the same, and how it is to be run."""

    owner: str
    request_id: str
    model: str
    options: DetectionOptions
    priority: Priority = Priority.BATCH
    idempotency_key: str | None = None
    model_sha256: str | None = None  # of the model that the engine has now; None: not known
    may_attach: bool = False  # an equal job's answer will do
    callback: Callback | None = None
