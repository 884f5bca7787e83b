"""Waiting for jobs: one thread a process looks for changes, however many wait."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from app.errors import JobNotFound
from app.jobs.database import Database
from app.jobs.job import Job
from app.jobs.store import JobStore
from app.wakeups import Listener, Program, Wakeups

_log = structlog.get_logger()

POLL_SECONDS = 1.0  # the longest delay of an answer whose wake-up was lost; a look costs microseconds


class JobWatch:
    """One caller's view of one job. Made by `JobWatcher.watch`."""

    def __init__(self, job_id: str, owner: str) -> None:
        self.job_id = job_id
        self.owner = owner
        self._changed = threading.Condition()
        self._job: Job | None = None
        self._fresh = False

    def next_change(self, timeout_seconds: float) -> Job | None:
        """Return the job once it differs from what the last call returned; None after the timeout.

        The first call returns the job as it is. Raises JobNotFound once the job is gone.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._fresh, timeout_seconds):
                return None
            self._fresh = False
            if self._job is None:
                raise JobNotFound(f"There is no job {self.job_id!r}.")
            return self._job

    def show(self, job: Job | None) -> None:
        """Take the job as it is now; wake the caller if it has changed."""
        with self._changed:
            if job is None or job != self._job:
                self._job, self._fresh = job, True
                self._changed.notify_all()


class JobWatcher:
    """Notifies waiting callers of changes to their jobs, whichever process made them.

    Its thread starts with the first caller. While callers wait, it checks the database's version whenever it
    is woken, and reads their jobs if the version has changed.
    """

    def __init__(self, database: Database, wakeups: Wakeups, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._store = JobStore(database)
        self._wakeups = wakeups
        self._poll_seconds = poll_seconds
        self._lock = threading.Condition()
        self._watches: set[JobWatch] = set()
        self._news = False  # a watch was added: look even if the database has not changed
        self._closing = False
        self._listener: Listener | None = None  # the thread's
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, job_id: str, *, owner: str) -> Iterator[JobWatch]:
        """Yield a view that follows the job until the block ends."""
        watch = JobWatch(job_id, owner)
        with self._lock:
            self._watches.add(watch)
            self._news = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="job-watcher", daemon=True)
                self._thread.start()
            self._call_thread()
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)

    def close(self) -> None:
        """Stop the thread. Callers that still wait run into their timeout."""
        with self._lock:
            self._closing = True
            self._call_thread()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _call_thread(self) -> None:
        self._lock.notify_all()
        if self._listener is not None:
            self._listener.interrupt()

    def _run(self) -> None:
        try:
            with self._wakeups.listen(Program.WEB) as listener:
                with self._lock:
                    self._listener = listener
                version: int | None = None
                while True:
                    with self._lock:
                        self._lock.wait_for(lambda: self._watches or self._closing)
                        if self._closing:
                            return
                        news, self._news = self._news, False
                        watches = [*self._watches]
                    version = self._look(watches, None if news else version)
                    listener.wait(self._poll_seconds)
        finally:
            self._database.close()

    def _look(self, watches: Sequence[JobWatch], last_version: int | None) -> int | None:
        """Show the watches their jobs, unless the database is of `last_version`; return its version."""
        try:
            version = self._database.version()
            if version != last_version:
                for owner in {watch.owner for watch in watches}:
                    own = [watch for watch in watches if watch.owner == owner]
                    jobs = self._store.find({watch.job_id for watch in own}, owner=owner)
                    for watch in own:
                        watch.show(jobs.get(watch.job_id))
        except sqlite3.Error:  # a busy or full disk passes; every caller has a timeout
            _log.exception("job watcher could not read the store")
            return None
        return version
