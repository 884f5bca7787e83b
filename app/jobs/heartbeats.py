"""The signs of life of the engine and the courier, as they write them and the web side reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import TypeAdapter

from app.detection.model_facts import ModelStatus
from app.jobs.database import Database
from app.jobs.engine_status import EngineStatus, HostStatus
from app.video.sandbox_status import SandboxStatus

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
