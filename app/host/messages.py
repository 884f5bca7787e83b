"""The messages between engine and host: frozen dataclasses, pickled, over a local socket.

Only two things are local to the machine: the paths of the video and of the parts' folder (`IndexTask.video`,
`SegmentTask.video`, `.parts_folder`). A host on another machine would get an address to read the video from,
and would send the part's bytes back.

Both ends run our code as the same user, so neither checks the other's pickles.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.detection.model_facts import ModelFacts, NoRoomForModel, UntriedModel, Verdict
from app.errors import InternalError, error_classes
from app.pipeline.runner import IndexItem, IndexTask
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.protocol.limits import VideoLimits
from app.video.results import IndexSummary, WorkCancelled
from app.video.sandbox_status import SandboxStatus

# What a host takes beyond its libraries and its models: the threads of its segments, their records, and free
# memory in its allocator.
HOST_OWN_BYTES = 96 * 1024 * 1024

# ---- the engine's first message


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """How a host starts its decoder processes."""

    limits: VideoLimits
    threads: int
    memory_bytes: int  # address space of each, without its ring
    ring_bytes: int
    stall_seconds: float
    require_sandbox: bool
    ready_children: int  # that wait for a video


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The configuration of one host. It waits for this message first."""

    device: str | None  # a torch device; None: the host chooses one and reports the others
    devices: tuple[str, ...]  # that the administrator named
    models: Path | None
    model_hashes: Path | None
    precision: str
    memory_bytes: int  # host memory that it may take; on a GPU, in addition to what CUDA took at the start
    torch_threads: int | None
    verdicts: Path
    decoders: DecoderPlan
    log_level: str


class TrialStep(StrEnum):
    TRY = "try"
    CONVERT = "convert"  # a model that has passed, to ONNX
    MEASURE = "measure"  # what it was converted to


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """The first and only message to a process that tries one model."""

    host: HostPlan  # what the model would be loaded with; its device is set
    model: str
    room_bytes: int  # host memory that the process may take; on a GPU, in addition to what CUDA takes
    host_own_bytes: int = 0  # what the host took before it loaded a model
    kept_device_bytes: int = 0  # of what models may take on the device: not for this one
    is_whole: bool = True  # the room: there will never be more
    step: TrialStep = TrialStep.TRY
    verdict: Verdict | None = None  # of the steps before


# ---- engine to host


@dataclass(frozen=True, slots=True)
class UseModel:
    """Load a model, and keep it until `ReleaseModel`. Answered by `ModelInUse` or `Failed`."""

    ticket: int
    model: str
    verdict: Verdict | None = None  # None: it is built in


@dataclass(frozen=True, slots=True)
class ReleaseModel:
    """`model` may be unloaded when another needs its memory."""

    model: str


@dataclass(frozen=True, slots=True, eq=False)
class RunSegment:
    """Answered by `Advanced`, any number of times, and `SegmentDone` or `Failed`."""

    ticket: int
    task: SegmentTask


@dataclass(frozen=True, slots=True)
class IndexVideo:
    """Answered by `IndexFound`, any number of times, and `IndexDone` or `Failed`."""

    ticket: int
    task: IndexTask


@dataclass(frozen=True, slots=True)
class Cancel:
    """The work of this ticket is no longer wanted. It is answered all the same."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ForgetVideo:
    """End the decoders of a video, which its job no longer needs."""

    video: Path


@dataclass(frozen=True, slots=True)
class LendRoom:
    """Make room for the trial of a model until `TakeRoomBack`. Answered by `RoomLent`."""

    ticket: int


@dataclass(frozen=True, slots=True)
class TakeRoomBack:
    """The trial has ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End now, in good order."""


# ---- host to engine


@dataclass(frozen=True, slots=True)
class HostReady:
    """A host is ready for work. No model is loaded yet."""

    device: str
    devices: tuple[str, ...]  # that should each have a host
    decoder_identity: str
    sandbox: SandboxStatus | None
    built_in_models: tuple[str, ...]
    models_bytes: int  # of host memory, that all models together may take
    runtime: str  # what decides a verdict besides the model's files: see VerdictStore
    own_bytes: int  # of host memory, before any model


@dataclass(frozen=True, slots=True)
class HostUnusable:
    """The host ends because its device or its decoders cannot be used. No other host would do better."""

    detail: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of a host, sent once a second."""

    loaded: frozenset[str] = frozenset()
    crowded: frozenset[str] = frozenset()  # models that do not fit beside those in use
    displaced: frozenset[str] = frozenset()  # … that do not fit while room is lent to a trial
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
class RoomLent:
    ticket: int
    kept_bytes: int  # of host memory, that the host may take meanwhile
    kept_device_bytes: int  # of the device, if that has memory of its own, for its models


@dataclass(frozen=True, slots=True, eq=False)
class IndexFound:
    ticket: int
    item: IndexItem


@dataclass(frozen=True, slots=True, eq=False)
class IndexDone:
    ticket: int
    summary: IndexSummary


@dataclass(frozen=True, slots=True)
class Advanced:
    """`frames` more frames of a running segment are finished."""

    ticket: int
    frames: int


@dataclass(frozen=True, slots=True, eq=False)
class SegmentDone:
    ticket: int
    outcome: SegmentOutcome
    wall_seconds: float
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase


# ---- of a trial


@dataclass(frozen=True, slots=True)
class TrialBegun:
    own_bytes: int  # of host memory, before the model is loaded; on a GPU with CUDA's


@dataclass(frozen=True, slots=True)
class TrialEnded:
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TrialTooLarge:
    """The model needs more memory than there was."""

    needed_bytes: int  # at least, of host memory
    device_bytes: int  # at least, of the device, if that has memory of its own
    budget: str  # what all models together may take, in words
    is_device_too_small: bool = False  # so that more host memory would not help


# ---- failures


class Reason(StrEnum):
    """Why something failed, and so what to do about it."""

    REFUSED = "refused"  # the video, the model or the request is at fault: see `code`
    DISK = "disk"  # a file could not be read or written: see `errno`
    HOST = "host"  # an internal fault
    DEVICE_LOST = "device_lost"  # nothing can be computed in that process any more; in another it may
    UNTRIED = "untried"  # the model's files have passed no trial
    NO_ROOM = "no_room"  # models in use take the memory that this one needs
    WORN = "worn"  # the process lacks memory that unloaded models should have left; a new one has it
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Failed:
    """The work of this ticket failed."""

    ticket: int
    reason: Reason
    detail: str = ""
    code: str = InternalError.code
    extensions: Mapping[str, Any] = field(default_factory=dict)
    errno: int = 0

    def error(self) -> Exception:
        """Return the failure as the exception that the host caught."""
        match self.reason:
            case Reason.REFUSED:
                return error_classes()[self.code](self.detail, dict(self.extensions))
            case Reason.DISK:
                return OSError(self.errno or errno.EIO, os.strerror(self.errno or errno.EIO))
            case Reason.NO_ROOM:
                return NoRoomForModel(self.detail)
            case Reason.UNTRIED:
                return UntriedModel(self.detail)
            case Reason.WORN:  # although the host was renewed
                return InternalError(f"{self.detail} Raise FRAMEBOX_HOST_MEMORY_BYTES.")
            case Reason.CANCELLED:
                return WorkCancelled()
            case Reason.HOST | Reason.DEVICE_LOST:
                return RuntimeError(f"a host failed: {self.detail}")
