"""What the engine says of itself, as the store keeps it and the web side reads it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from app.detection.model_facts import ModelStatus
from app.video.sandbox_status import SandboxStatus


class HostStatus(BaseModel):
    """The process that runs the models of one device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(description="torch's name of the device, such as cpu or cuda:0")
    pid: int = Field(description="of the process")
    ready: bool = Field(description="it takes segments")
    memory_bytes: int = Field(description="resident memory of the process, shared memory apart")
    segments: int = Field(description="under way in it")
    frames: int = Field(description="analysed since it was started")
    busy_seconds: float = Field(description="that it spent in models since it was started")
    out_of_memory_count: int = Field(
        description="batches that had to be halved for want of the device's memory since it was started"
    )
    model_fault_count: int = Field(description="batches that a model failed at since it was started")
    dropped_box_count: int = Field(
        description="boxes without area inside their frame, which are left out, since it was started"
    )
    restarts: int = Field(description="how often the host of this device was replaced")


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine last said of itself."""

    epoch: int
    pid: int
    ready: bool  # jobs are being taken
    heartbeat_at: float  # Unix seconds
    models: tuple[
        ModelStatus, ...
    ]  # those that can be asked for, and those that are refused; empty: not known
    hosts: tuple[HostStatus, ...]
    sandbox: SandboxStatus | None  # None: no decoder has been started yet
