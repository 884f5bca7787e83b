"""Clean-up: of finished jobs after some days or when the disk fills up, and of what crashes left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.failpoints import fail_point
from app.jobs.queue import JobQueue
from app.storage.data_folder import JOB_ID, DataFolder
from app.storage.locks import remove_unheld
from app.storage.space import free_bytes
from app.storage.spool import Spool
from app.storage.uploads import Uploads

FETCH_SECONDS = 300.0  # callers have at least this long to fetch an answer, however full the disk is
_AT_ONCE = 20  # jobs removed per call, so that the caller's loop is not held up


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    keep_seconds: float  # after a job's end, or after its answer was last given to a new request
    keep_free_bytes: int  # with less free space than this, the oldest jobs are removed earlier


@dataclass(frozen=True, slots=True)
class Retention:
    """Removes the records and files of finished jobs. Jobs that are queued or running are never touched."""

    data: DataFolder
    queue: JobQueue
    limits: RetentionLimits
    uploads: Uploads
    measure: Callable[[Path], int] = free_bytes
    clock: Callable[[], float] = time.time

    def remove_old(self) -> int:
        """Remove some jobs that are too old, then some for which the disk has no room; return how many.

        Abandoned uploads are removed too. Call it regularly: it does a little at a time.
        """
        self.uploads.remove_expired()
        old = self.queue.oldest_ended(before=self.clock() - self.limits.keep_seconds, limit=_AT_ONCE)
        removed = sum(map(self._remove, old))
        if self._has_room():
            return removed
        for job_id in self.queue.oldest_ended(before=self.clock() - FETCH_SECONDS, limit=_AT_ONCE):
            removed += self._remove(job_id)
            if self._has_room():
                break
        return removed

    def _has_room(self) -> bool:
        return self.measure(self.data.root) >= self.limits.keep_free_bytes

    def _remove(self, job_id: str) -> bool:
        """Delete the record first: a folder without a record is a leftover, but not the other way round."""
        if not self.queue.delete(job_id):
            return False  # another program was faster
        fail_point("job_forgotten")
        self.data.remove_job(job_id)
        return True


def remove_leftovers(folder: DataFolder, spool: Spool, queue: JobQueue) -> int:
    """Remove uploads and job folders that a crash left without an owner; return how many.

    Safe while other processes receive uploads: these are locked until their record exists.
    """
    return spool.remove_leftovers() + remove_orphans(folder, queue)


def remove_orphans(folder: DataFolder, queue: JobQueue) -> int:
    """Remove the folders of jobs that have no record; return how many."""
    removed, known = 0, queue.ids()
    for job_folder in folder.jobs.iterdir():
        job_id = job_folder.name
        if JOB_ID.fullmatch(job_id) and job_id not in known:
            removed += remove_unheld(job_folder, is_leftover=lambda: job_id not in queue.ids())  # noqa: B023
    return removed
