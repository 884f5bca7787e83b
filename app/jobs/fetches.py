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
class SourceVersion:
    """What a server says of the video that it sends. None: it does not say, or nothing is known yet."""

    expected_bytes: int | None = None
    etag: str | None = None  # as the server sent it
    modified: str | None = None  # Last-Modified, likewise


@dataclass(frozen=True, slots=True)
class Fetch:
    """A video to be fetched."""

    job_id: str
    owner: str
    url: str = field(repr=False)
    created_at: float  # Unix seconds: of the job
    version: SourceVersion  # of what has arrived


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
        version = SourceVersion(row["source_bytes"], row["etag"], row["modified"])
        return Fetch(row["id"], row["owner"], row["url"], row["created_at"], version)

    def begin(self, job_id: str, version: SourceVersion) -> bool:
        """Record what is arriving, from its first byte on. False if it is no longer wanted."""
        query = f"UPDATE jobs SET source_bytes = ?, source_received = 0 WHERE {_WANTED}"  # noqa: S608 - a constant
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE fetches SET etag = ?, modified = ? WHERE job_id = ?",
                (version.etag, version.modified, job_id),
            )
            return bool(connection.execute(query, (version.expected_bytes, job_id)).rowcount)

    def progress(self, job_id: str, received_bytes: int) -> bool:
        """Record how many bytes have arrived. False if the video is no longer wanted."""
        arriving = "source_received = ?, waiting = ?"
        return self._write(job_id, arriving, received_bytes, Waiting.SOURCE, durable=False)

    def say_waiting(self, job_id: str, waiting: Waiting) -> bool:
        """Record why nothing arrives. False if the video is no longer wanted."""
        return self._write(job_id, "waiting = ?", waiting)

    def complete(self, job_id: str, size_bytes: int, sha256: str | None) -> bool:
        """Record that the video is in the job's folder: the job may start. False if no longer wanted."""
        content_key = None if sha256 is None else content_key_of(sha256)
        arrived = "source_ready = 1, waiting = NULL, source_bytes = ?, source_received = ?"
        digest = "source_sha256 = ?, content_key = ?"
        values = (size_bytes, size_bytes, sha256, content_key)
        return self._write(job_id, f"{arrived}, {digest}", *values, ends=True)

    def fail(self, job_id: str, error: FrameboxError) -> bool:
        """Record that the video cannot be fetched: the job has failed. False if no longer wanted."""
        problem = orjson.dumps(error.to_problem()).decode()
        ended = "state = 'failed', waiting = NULL, problem = ?, finished_at = ?"
        return self._write(job_id, ended, problem, time.time(), ends=True)

    def _write(
        self, job_id: str, assignments: str, *values: object, ends: bool = False, durable: bool = True
    ) -> bool:
        """Change the record of a job whose video is still wanted; `ends`: and forget how to fetch it."""
        query = f"UPDATE jobs SET {assignments} WHERE {_WANTED}"  # noqa: S608 - constants of this module
        woken = Program if ends else (Program.WEB,)
        with self._database.transaction(*woken, durable=durable) as connection:
            is_wanted = bool(connection.execute(query, (*values, job_id)).rowcount)
            if ends:
                connection.execute("DELETE FROM fetches WHERE job_id = ?", (job_id,))
        return is_wanted
