"""What the engine writes: under its epoch, and despite a full disk."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import structlog

from app.jobs.database import Database
from app.jobs.heartbeats import Heartbeats
from app.jobs.job import Job
from app.jobs.queue import JobQueue, LeaseLost
from app.jobs.retention import remove_orphans
from app.storage.data_folder import DataFolder
from app.storage.parts import PartStore
from app.storage.space import Ballast, free_bytes, is_disk_full

NO_ROOM_SECONDS = 5.0  # before the next try, after the disk refused a write
BALLAST_BYTES = 4 * 1024 * 1024  # more than the database's log ever needs

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Records:
    """The jobs' records as one engine writes them. Its creator holds the data folder's engine lock."""

    def __init__(
        self, data: DataFolder, database: Database, *, min_free_bytes: int, stop: threading.Event
    ) -> None:
        """`stop` is set when the engine stops: then no write waits for room."""
        self.data = data
        self.database = database
        self.queue = JobQueue(database)
        self.heartbeats = Heartbeats(database)
        self.epoch = 0
        self._stop = stop
        self._min_free_bytes = min_free_bytes
        self._ballast = Ballast(data.ballast, BALLAST_BYTES)
        self._full_until = 0.0  # monotonic seconds; set when the disk refused a write

    def begin(self) -> None:
        """Start an epoch: jobs of an earlier engine are queued again. LeaseLost if the engine must stop."""
        self.epoch = self.until_room(
            lambda: self.queue.begin_epoch(
                pid=os.getpid(), part_traces={job_id: self.trace(job_id) for job_id in self.queue.running()}
            )
        )
        remove_orphans(self.data, self.queue)
        for job_id in self.queue.ended():  # an engine that was killed may have left their videos and parts
            self.data.remove_inputs(job_id)

    def trace(self, job_id: str) -> str:
        """Return a text that changes with every new part of the job."""
        return PartStore(self.data.parts(job_id)).trace()

    def count_deaths(self, job_ids: Collection[str], *, hung: str | None) -> Sequence[Job]:
        """See `JobQueue.count_deaths`. On a full disk nothing is counted."""
        if not job_ids:
            return []
        try:
            return self.queue.count_deaths(
                self.epoch, {job_id: self.trace(job_id) for job_id in job_ids}, hung=hung
            )
        except sqlite3.Error:
            _log.warning("the end of a host is not counted", exc_info=True)
            return []

    def say_stopping(self) -> None:
        """Record that this engine stops and did not die. On a full disk, its silence has to do."""
        try:
            self.heartbeats.report_engine(self.epoch, ready=False, hosts=())
        except sqlite3.Error as error:
            if not is_disk_full(error):
                raise

    def has_room(self) -> bool:
        """Return whether a job may start. The reserve for the records is filled up again before that."""
        is_full = free_bytes(self.data.root) < self._min_free_bytes
        return time.monotonic() >= self._full_until and not is_full and self._ballast.take()

    def note_full_disk(self) -> None:
        """Start no job for a while, because the disk refused a write."""
        self._full_until = time.monotonic() + NO_ROOM_SECONDS

    def until_room(self, write: Callable[[], T]) -> T:
        """Call `write` until the disk has room for it. LeaseLost if the engine stops before that.

        What is not written has not happened: the next engine then resumes the job from its parts.
        """
        while True:
            try:
                return write()
            except sqlite3.Error as error:
                if not is_disk_full(error):
                    raise
                _log.warning("no room on disk for the jobs' records", exc_info=True)
                if not self._ballast.give() and self._stop.wait(NO_ROOM_SECONDS):
                    raise LeaseLost("the engine stops") from error
