"""What engine and host say to each other: frozen dataclasses, pickled, over a local socket.

Nothing but a task, the name of its video and its finished part passes between the two. What is local is the
*path* of the video and of the parts' folder (`IndexTask.video`, `SegmentTask.video`, `.parts_folder`): a host
on another machine would be given an address to read the video from, and would send the part's bytes back.

Both ends are processes of one user that run code of ours: neither checks the other's pickles.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.detection.model_facts import ModelFacts, NoRoomForModel
from app.errors import FrameboxError, InternalError, ModelFault, error_class
from app.pipeline.runner import IndexTask, WorkCancelled
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.index_summary import IndexSummary
from app.video.protocol.facts import VideoFacts
from app.video.protocol.limits import VideoLimits
from app.video.sandbox_status import SandboxStatus
from app.video.segments import Segment

# ---- the engine's first message


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """How a host makes its decoder children."""

    limits: VideoLimits
    threads: int
    memory_bytes: int  # address space of each, its ring apart
    ring_bytes: int
    stall_seconds: float
    require_sandbox: bool
    ready_children: int  # that wait for a video


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What one host is to be. Its first message, before which it does nothing."""

    device: str | None  # a torch device; None: the host chooses, and says which others there are
    devices: tuple[str, ...]  # what the administrator named
    models: Path | None
    model_hashes: Path | None
    precision: str
    memory_bytes: int  # host memory that it may take; on a GPU, beyond what CUDA took at its start
    torch_threads: int | None
    profiles: Path
    model_attempts: Path
    decoders: DecoderPlan
    log_level: str


# ---- engine to host


@dataclass(frozen=True, slots=True)
class UseModel:
    """Load a model, and keep it until `ReleaseModel`. Answered by `ModelInUse` or `Failed`."""

    ticket: int
    model: str


@dataclass(frozen=True, slots=True)
class ReleaseModel:
    """`model` may be unloaded when another needs its room."""

    model: str


@dataclass(frozen=True, slots=True, eq=False)
class RunSegment:
    """Answered by `Advanced`, any number of times, and `SegmentDone` or `Failed`."""

    ticket: int
    task: SegmentTask


@dataclass(frozen=True, slots=True)
class IndexVideo:
    """Answered by `VideoFound`, `SegmentsFound`, any number of times, and `IndexDone`; or `Failed`."""

    ticket: int
    task: IndexTask


@dataclass(frozen=True, slots=True)
class Cancel:
    """What this ticket stands for is not wanted any more. It is answered all the same."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ForgetVideo:
    """Let go of a video: its job is done with it."""

    video: Path


@dataclass(frozen=True, slots=True)
class Stop:
    """End now, in good order."""


# ---- host to engine


@dataclass(frozen=True, slots=True)
class HostReady:
    """A host is there; its models are not loaded yet."""

    device: str
    devices: tuple[str, ...]  # those for which there should be hosts
    decoder_identity: str
    sandbox: SandboxStatus | None
    model_names: tuple[str, ...]  # all that can be asked for, sorted
    own_bytes: int  # of host memory, before any model


@dataclass(frozen=True, slots=True)
class HostUnusable:
    """The host ends: its device or its decoders are of no use, and no other host would fare better."""

    detail: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of a host, sent once a second."""

    loaded: frozenset[str] = frozenset()
    crowded: frozenset[str] = frozenset()  # models that do not fit beside those in use
    loading_seconds: float = 0.0  # of the model that is being loaded; 0 while none is
    call_seconds: float = 0.0  # of the longest batch that is now in a model
    call_job_id: str | None = None  # whose batch that is
    frames: int = 0  # analysed since the host started
    busy_seconds: float = 0.0  # inside the models since the host started
    device_fault: str | None = None  # why the device can no longer be used
    # these, too, since the host started
    out_of_memory_count: int = 0  # batches that were halved because the device lacked memory
    model_fault_count: int = 0  # batches that a model failed at
    dropped_box_count: int = 0  # boxes without area inside their frame


@dataclass(frozen=True, slots=True)
class ModelInUse:
    ticket: int
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class VideoFound:
    ticket: int
    facts: VideoFacts


@dataclass(frozen=True, slots=True, eq=False)
class SegmentsFound:
    ticket: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class IndexDone:
    ticket: int
    summary: IndexSummary


@dataclass(frozen=True, slots=True)
class Advanced:
    """So many more frames of a segment under way are dealt with."""

    ticket: int
    frames: int


@dataclass(frozen=True, slots=True, eq=False)
class SegmentDone:
    ticket: int
    outcome: SegmentOutcome
    wall_seconds: float
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase


class Reason(StrEnum):
    """Whose fault it is that something failed, or whether it is one at all."""

    REFUSED = "refused"  # the video's, the model's or the request's: `code` tells which
    DISK = "disk"  # a file could not be read or written: `errno` tells why
    HOST = "host"  # the service's own
    DEVICE_LOST = "device_lost"  # nothing can be computed in that process any more: elsewhere it may
    NO_ROOM = "no_room"  # models in use hold the room of this one
    WORN = "worn"  # memory of models that are gone has not come back: a new host would have room
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why something came to nothing."""

    ticket: int
    reason: Reason
    detail: str = ""
    code: str = InternalError.code
    extensions: Mapping[str, Any] = field(default_factory=dict)
    errno: int = 0

    def error(self) -> Exception:
        """Return it as the exception that it was at the host."""
        match self.reason:
            case Reason.REFUSED:
                return error_class(self.code)(self.detail, dict(self.extensions))
            case Reason.DISK:
                return OSError(self.errno or errno.EIO, os.strerror(self.errno or errno.EIO))
            case Reason.NO_ROOM:
                return NoRoomForModel(self.detail)
            case Reason.WORN:  # for the last time
                return ModelFault(self.detail)
            case Reason.CANCELLED:
                return WorkCancelled()
            case Reason.HOST | Reason.DEVICE_LOST:
                return RuntimeError(f"a host failed: {self.detail}")


def failure(ticket: int, error: BaseException, reason: Reason = Reason.HOST) -> Failed:
    """Return what the engine is told of `error`; `reason` is that of an error of no kind that is known."""
    match error:
        case WorkCancelled():
            return Failed(ticket, Reason.CANCELLED)
        case NoRoomForModel():
            return Failed(ticket, Reason.NO_ROOM, str(error))
        case FrameboxError():
            return Failed(ticket, Reason.REFUSED, error.detail, error.code, error.extensions)
        case OSError():
            return Failed(ticket, Reason.DISK, type(error).__name__, errno=error.errno or 0)
        case _:
            return Failed(ticket, reason, f"{type(error).__name__}: {error}")
