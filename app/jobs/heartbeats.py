"""The signs of life of the engine and the courier, as they write them and the web side reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.detection.model_facts import ModelStatus
from app.jobs.database import Database
from app.video.sandbox_status import SandboxStatus

SILENT_SECONDS = 10.0  # an engine that has written nothing for this long is gone


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
        description="batches that were halved because the device ran out of memory, since it was started"
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
    heartbeat_at: float  # Unix seconds; 0: it has never started
    models: tuple[ModelStatus, ...]  # usable and refused ones; empty: not known
    hosts: tuple[HostStatus, ...]
    sandbox: SandboxStatus | None  # None: no decoder has been started yet


def why_not_ready(engine: EngineStatus, *, now: float, default_model: str | None = None) -> str | None:
    """Return why a job posted now would not be run, in words for people; None if it would.

    Details follow a colon. `default_model` is the one that the engine loads first, if the caller knows it.
    """
    if not engine.heartbeat_at:
        return "the engine has not started yet"
    if now - engine.heartbeat_at > SILENT_SECONDS:
        return f"the engine is not running: last heard from {now - engine.heartbeat_at:.0f} seconds ago"
    if engine.ready:
        return None
    if not engine.hosts:
        return "the engine is starting or stopping"
    if not any(host.ready for host in engine.hosts):
        return "no host yet: the process that runs the models is starting"
    for model in engine.models:
        if model.name == default_model and model.refusal is not None:
            return f"the default model cannot be loaded: {model.refusal.detail}"
    return "the default model is loading"


_MODELS = TypeAdapter(tuple[ModelStatus, ...])
_HOSTS = TypeAdapter(tuple[HostStatus, ...])


class Heartbeats:
    """What the programs of one data folder last reported of themselves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def engine(self) -> EngineStatus:
        row = self._database.read("SELECT * FROM engine").fetchone()
        return EngineStatus(
            epoch=row["epoch"],
            pid=row["pid"],
            ready=bool(row["ready"]),
            heartbeat_at=row["heartbeat_at"],
            models=_MODELS.validate_json(row["models"]),
            hosts=_HOSTS.validate_json(row["hosts"]),
            sandbox=SandboxStatus.model_validate_json(row["sandbox"]) if row["sandbox"] else None,
        )

    def report_engine(
        self,
        epoch: int,
        *,
        ready: bool,
        models: Sequence[ModelStatus] | None = None,
        hosts: Sequence[HostStatus] | None = None,
        sandbox: SandboxStatus | None = None,
    ) -> None:
        """Record that the engine of `epoch` is alive. Arguments that are None keep their recorded value."""
        with self._database.transaction(durable=not ready) as connection:
            connection.execute(
                "UPDATE engine SET ready = ?, heartbeat_at = ?, "
                "models = coalesce(?, models), hosts = coalesce(?, hosts), sandbox = coalesce(?, sandbox) "
                "WHERE epoch = ?",
                (
                    ready,
                    time.time(),
                    None if models is None else _MODELS.dump_json(tuple(models)).decode(),
                    None if hosts is None else _HOSTS.dump_json(tuple(hosts)).decode(),
                    None if sandbox is None else sandbox.model_dump_json(),
                    epoch,
                ),
            )

    def courier_at(self) -> float:
        """Return when the courier was last alive, in Unix seconds; 0 if it has never started."""
        (heartbeat_at,) = self._database.read("SELECT heartbeat_at FROM courier").fetchone()
        return float(heartbeat_at)

    def report_courier(self) -> None:
        with self._database.transaction(durable=False) as connection:
            connection.execute("UPDATE courier SET heartbeat_at = ?", (time.time(),))
