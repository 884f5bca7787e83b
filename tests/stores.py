"""The stores of one database, together: what tests need to play several programs at once."""

from __future__ import annotations

from pathlib import Path

from app.jobs.database import Database
from app.jobs.heartbeats import Heartbeats
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.wakeups import Wakeups


class Stores(JobStore):
    """A store of jobs, with the other stores of its database as attributes."""

    def __init__(self, database: Path | Database, wakeups: Wakeups | None = None) -> None:
        self.database = database if isinstance(database, Database) else Database(database, wakeups)
        self.queue = JobQueue(self.database)
        self.heartbeats = Heartbeats(self.database)
        super().__init__(self.database)
