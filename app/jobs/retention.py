"""What is kept of jobs that ended, and for how long: so many days, and as long as there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.errors import FrameboxError
from app.failpoints import fail_point
from app.jobs.store import JobStore
from app.storage.data_folder import DataFolder
from app.storage.space import free_bytes
from app.storage.uploads import Uploads

FETCH_SECONDS = 300.0  # whoever waits for an answer has so long to fetch it, however full the disk
_AT_ONCE = 20  # jobs removed a call, so that the caller's loop goes on in between


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    keep_seconds: float  # after a job's end, or since its answer was last given to a new request
    keep_free_bytes: int  # below so much room the oldest go before their time


class Retention:
    """Removes the records and files of jobs that ended. Jobs that wait or run are never touched."""

    def __init__(
        self,
        data: DataFolder,
        store: JobStore,
        limits: RetentionLimits,
        uploads: Uploads,
        *,
        measure: Callable[[Path], int] = free_bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._data = data
        self._store = store
        self._limits = limits
        self._uploads = uploads
        self._measure = measure
        self._clock = clock

    def remove_old(self) -> int:
        """Remove some of what is too old, and then of what the disk has no room for; return how many jobs.

        Abandoned uploads go too. Call it again and again: it does a little at a time.
        """
        old = self._store.oldest_ended(before=self._clock() - self._limits.keep_seconds, limit=_AT_ONCE)
        self._uploads.remove_expired()
        return sum(map(self._remove, old)) + self._make_room()

    def _make_room(self) -> int:
        if self._has_room():
            return 0
        removed = 0
        for job_id in self._store.oldest_ended(before=self._clock() - FETCH_SECONDS, limit=_AT_ONCE):
            removed += self._remove(job_id)
            if self._has_room():
                break
        return removed

    def _has_room(self) -> bool:
        return self._measure(self._data.root) >= self._limits.keep_free_bytes

    def _remove(self, job_id: str) -> bool:
        """The record goes first: a folder without one is a leftover, but a record without files is a lie."""
        try:
            self._store.delete(job_id)
        except FrameboxError:
            return False  # somebody else was faster
        fail_point("job_forgotten")
        self._data.remove_job(job_id)
        return True
