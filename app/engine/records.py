"""What the engine writes down: under its epoch, and through a full disk."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
from app.wakeups import Listener, Program, Wakeups

NO_ROOM_SECONDS = 5.0  # after the disk refused a write, nothing is tried for so long
BALLAST_BYTES = 4 * 1024 * 1024  # more than the database's log ever needs

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Records:
    """The jobs' records as one engine writes them. Whoever makes it holds the data folder's engine lock."""

    def __init__(
        self, data: DataFolder, database: Database, *, min_free_bytes: int, stop: threading.Event
    ) -> None:
        """`stop`: the engine stops, so nothing is waited for."""
        self.data = data
        self.database = database
        self.queue = JobQueue(database)
        self.heartbeats = Heartbeats(database)
        self.epoch = 0
        self.stop = stop
        self._min_free_bytes = min_free_bytes
        self._ballast = Ballast(data.ballast, BALLAST_BYTES)
        self._nothing_before = 0.0  # monotonic seconds; set when the disk refused a write

    def begin(self) -> None:
        """Begin an epoch: jobs of an earlier engine are queued again. Raises LeaseLost if it has to stop."""
        self.epoch = self.until_room(
            lambda: self.queue.begin_epoch(pid=os.getpid(), part_traces=self.traces(self.queue.running()))
        )
        remove_orphans(self.data, self.queue)
        for job_id in self.queue.ended():  # an engine that was killed may have left their videos and parts
            self.data.remove_inputs(job_id)

    def listen(self) -> Listener:
        """Return what wakes the engine when the records have news for it."""
        return Wakeups(self.data.wakeups).listen(Program.ENGINE)

    def trace(self, job_id: str) -> str:
        """A text that differs once the job has made a part."""
        return PartStore(self.data.parts(job_id)).trace()

    def traces(self, job_ids: Collection[str]) -> Mapping[str, str]:
        return {job_id: self.trace(job_id) for job_id in job_ids}

    def count_deaths(self, job_ids: Collection[str], *, hung: str | None) -> Sequence[Job]:
        """See `JobQueue.count_deaths`. On a full disk nothing is counted."""
        try:
            return self.queue.count_deaths(self.epoch, self.traces(job_ids), hung=hung)
        except sqlite3.Error:
            _log.warning("the end of a host is not counted", exc_info=True)
            return []

    def say_stopping(self) -> None:
        """Say that this engine's end is no death; its silence tells soon enough, if the disk is full."""
        try:
            self.heartbeats.report_engine(self.epoch, ready=False, hosts=())
        except sqlite3.Error as error:
            if not is_disk_full(error):
                raise

    def has_room(self) -> bool:
        """Whether a job may begin. What was held back for the records is theirs again before that."""
        is_full = free_bytes(self.data.root) < self._min_free_bytes
        return time.monotonic() >= self._nothing_before and not is_full and self._ballast.take()

    def note_full_disk(self) -> None:
        """Let nothing begin for a while: the disk refused a write."""
        self._nothing_before = time.monotonic() + NO_ROOM_SECONDS

    def until_room(self, write: Callable[[], T]) -> T:
        """Call `write` until the disk has room for it. LeaseLost if the engine stops before that.

        The next engine then takes the job up from its parts: what is not written down has not happened.
        """
        while True:
            try:
                return write()
            except sqlite3.Error as error:
                if not is_disk_full(error):
                    raise
                _log.warning("no room on disk for the jobs' records", exc_info=True)
                if not self._ballast.give() and self.stop.wait(NO_ROOM_SECONDS):
                    raise LeaseLost("the engine stops") from error
