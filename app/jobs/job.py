"""A job's record: one request from its acceptance to its end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.errors import Problem
from app.pipeline.options import DetectionOptions
from app.storage.ingest import FileIdentity


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
    """Who is served first. No class starves: see `JobStore.claim` and `LocalRunner`."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Waiting(StrEnum):
    """Why a queued job is not taken up, beyond that others are before it."""

    DISK_SPACE = "disk_space"


class SourceKind(StrEnum):
    """How a video is given. Also the names of a JSON body's members."""

    UPLOAD = "upload"  # it was sent, and lies in the job's folder until the job ends
    PATH = "path"  # it is a file of an ingest folder, and is read there


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A job's video."""

    size_bytes: int
    sha256: str | None  # hex, of the bytes received; None: nobody has read them all
    name: str | None  # the client's file name, as given, at most 255 characters; for display alone
    kind: SourceKind = SourceKind.UPLOAD
    address: str | None = None  # of what was not uploaded, as given
    identity: FileIdentity | None = None  # of a file that is read where it lies

    @property
    def claim(self) -> str | None:
        """What a request says that its video is: what it names, or the digest of what it sent."""
        return self.sha256 if self.address is None else f"{self.kind} {self.address}"

    def is_same_video(self, other: VideoSource) -> bool:
        """Whether both are known to be the same bytes."""
        if self.sha256 is not None or other.sha256 is not None:
            return self.sha256 == other.sha256
        named = (self.kind, self.address, self.identity)
        return self.identity is not None and named == (other.kind, other.address, other.identity)


@dataclass(frozen=True, slots=True)
class Progress:
    frames_done: int = 0  # frames whose part is on disk
    frames_total: int | None = None  # frames to analyse; None until the index is whole
    segments_done: int = 0
    segments_total: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the engine last thought of a running job's end."""

    seconds_left: float
    made_at: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the store, as read. Times are Unix seconds."""

    id: str
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
    report: dict[str, Any] | None  # facts about video, model, completeness, document; grows while it runs
    priority: Priority = Priority.BATCH
    waiting: Waiting | None = None
    estimate: Estimate | None = None  # of this run's end


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What is asked for, but for the video: what makes two requests the same, and how it is to be run."""

    request_id: str
    model: str
    options: DetectionOptions
    priority: Priority = Priority.BATCH
    idempotency_key: str | None = None
    model_sha256: str | None = None  # of the model that the engine has now; None: not known
    may_attach: bool = False  # an equal job's answer will do


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine last said of itself."""

    epoch: int
    pid: int
    ready: bool  # the detectors are loaded and jobs are being taken
    heartbeat_at: float  # Unix seconds
    models: list[dict[str, Any]]  # as /v1/models shows them
    sandbox: dict[str, Any]  # which parts of the decoder's lock-down are in force
