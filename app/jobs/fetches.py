"""The records of videos that are being fetched: the job exists, its video has not arrived yet.

One courier writes them. Its writes change nothing once the job was cancelled or deleted, and return false.
The whole URL, which may be a secret, is deleted when the fetch ends. How many bytes have arrived is the size
of a file: see `app.storage.uploads`. The number in the job's record is only for its report.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import orjson

from app.errors import FrameboxError
from app.jobs.database import Database
from app.jobs.job import Waiting, content_key_of
from app.wakeups import Program

_WANTED = "id = ? AND state = 'queued' AND source_ready = 0"


@dataclass(frozen=True, slots=True)
class Fetch:
    """A video to be fetched."""

    job_id: str
    owner: str
    url: str = field(repr=False)
    created_at: float  # Unix seconds: of the job
    expected_bytes: int | None  # None: unknown
    etag: str | None  # of what has arrived, as the server sent it
    modified: str | None  # Last-Modified, likewise


class FetchStore:
    """The fetches of one data folder."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def wanted(self, limit: int) -> list[str]:
        """Return the ids of jobs whose video is to be fetched: interactive ones first, then the oldest."""
        rows = self._database.read(
            "SELECT id FROM jobs WHERE state = 'queued' AND source_ready = 0 "
            "ORDER BY priority = 'batch', sequence LIMIT ?",
            (limit,),
        )
        return [row["id"] for row in rows]

    def get(self, job_id: str) -> Fetch | None:
        """Return the fetch of a job; None if it is no longer wanted."""
        query = f"SELECT * FROM jobs JOIN fetches ON job_id = id WHERE {_WANTED}"  # noqa: S608 - a constant
        row = self._database.read(query, (job_id,)).fetchone()
        if row is None:
            return None
        return Fetch(
            job_id=row["id"],
            owner=row["owner"],
            url=row["url"],
            created_at=row["created_at"],
            expected_bytes=row["source_bytes"],
            etag=row["etag"],
            modified=row["modified"],
        )

    def begin(
        self, job_id: str, *, expected_bytes: int | None, etag: str | None, modified: str | None
    ) -> bool:
        """Record what is arriving, from its first byte on. False if it is no longer wanted."""
        query = f"UPDATE jobs SET source_bytes = ?, source_received = 0 WHERE {_WANTED}"  # noqa: S608 - a constant
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE fetches SET etag = ?, modified = ? WHERE job_id = ?", (etag, modified, job_id)
            )
            return bool(connection.execute(query, (expected_bytes, job_id)).rowcount)

    def progress(self, job_id: str, received_bytes: int) -> bool:
        """Record how many bytes have arrived. False if the video is no longer wanted."""
        return self._update(
            job_id, "source_received = ?, waiting = ?", received_bytes, Waiting.SOURCE, durable=False
        )

    def say_waiting(self, job_id: str, waiting: Waiting) -> bool:
        """Record why nothing arrives. False if the video is no longer wanted."""
        return self._update(job_id, "waiting = ?", waiting)

    def complete(self, job_id: str, size_bytes: int, sha256: str | None) -> bool:
        """Record that the video is in the job's folder: the job may start. False if no longer wanted."""
        return self._end(
            job_id,
            "source_ready = 1, waiting = NULL, source_bytes = ?, source_received = ?, source_sha256 = ?, "
            "content_key = ?",
            size_bytes,
            size_bytes,
            sha256,
            None if sha256 is None else content_key_of(sha256),
        )

    def fail(self, job_id: str, error: FrameboxError) -> bool:
        """Record that the video cannot be fetched: the job has failed. False if no longer wanted."""
        problem = orjson.dumps(error.to_problem()).decode()
        ended = "state = 'failed', waiting = NULL, problem = ?, finished_at = ?"
        return self._end(job_id, ended, problem, time.time())

    def _update(self, job_id: str, assignments: str, *values: object, durable: bool = True) -> bool:
        query = f"UPDATE jobs SET {assignments} WHERE {_WANTED}"  # noqa: S608 - constants of this module
        with self._database.transaction(Program.WEB, durable=durable) as connection:
            return bool(connection.execute(query, (*values, job_id)).rowcount)

    def _end(self, job_id: str, assignments: str, *values: object) -> bool:
        query = f"UPDATE jobs SET {assignments} WHERE {_WANTED}"  # noqa: S608 - constants of this module
        with self._database.transaction(*Program) as connection:
            is_wanted = bool(connection.execute(query, (*values, job_id)).rowcount)
            connection.execute("DELETE FROM fetches WHERE job_id = ?", (job_id,))
        return is_wanted
