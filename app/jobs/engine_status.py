"""What the engine reports of itself, and whether that means that it is ready."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from app.detection.model_facts import ModelStatus
from app.video.sandbox_status import SandboxStatus

SILENT_SECONDS = 10.0  # an engine that has written nothing for so long is gone


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
    """What the engine last reported of itself."""

    epoch: int
    pid: int
    ready: bool  # jobs are being taken
    heartbeat_at: float  # Unix seconds
    models: tuple[
        ModelStatus, ...
    ]  # those that can be asked for, and those that are refused; empty: not known
    hosts: tuple[HostStatus, ...]
    sandbox: SandboxStatus | None  # None: no decoder has been started yet

    def silent_seconds(self, now: float) -> float | None:
        """Return the time since it last wrote something, at Unix time `now`; None if it never did."""
        return max(0.0, now - self.heartbeat_at) if self.heartbeat_at else None


def why_not_ready(engine: EngineStatus, *, now: float, default_model: str | None = None) -> str | None:
    """Return why a job posted now would not be run, in words for people; None if it would.

    Details follow a colon. `default_model` is the one that the engine loads first, if the caller knows it.
    """
    silent_seconds = engine.silent_seconds(now)
    if silent_seconds is None:
        return "the engine has not started yet"
    if silent_seconds > SILENT_SECONDS:
        return f"the engine is not running: last heard from {silent_seconds:.0f} seconds ago"
    return None if engine.ready else _what_it_lacks(engine, default_model)


def _what_it_lacks(engine: EngineStatus, default_model: str | None) -> str:
    """Return why a running engine takes no jobs."""
    if not engine.hosts:
        return "the engine is starting or stopping"
    if not any(host.ready for host in engine.hosts):
        return "no host yet: the process that runs the models is starting"
    for model in engine.models:
        if model.name == default_model and model.refusal is not None:
            return f"the default model cannot be loaded: {model.refusal.detail}"
    return "the default model is loading"
