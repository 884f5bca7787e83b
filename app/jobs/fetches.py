"""The records of videos that are being fetched: the job is there, its video is not yet.

One courier a data folder writes them. Whatever it says of a job that was cancelled or deleted meanwhile
changes nothing, and it is told so. The whole URL, which may be a secret, is forgotten with the fetch's end.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass, field

import orjson

from app.errors import FrameboxError
from app.jobs.job import Waiting
from app.jobs.store import JobStore
from app.wakeups import Program

_WANTED = "id = ? AND state = 'queued' AND source_ready = 0"


@dataclass(frozen=True, slots=True)
class Fetch:
    """A video to be fetched, and how far that is."""

    job_id: str
    request_id: str
    url: str = field(repr=False)
    created_at: float  # Unix seconds: of the job
    expected_bytes: int | None  # None: not known
    received_bytes: int  # durable
    etag: str | None  # as the server gave it, of what was received
    modified: str | None  # Last-Modified, likewise


class FetchStore:
    """The fetches of one data folder."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def wanted(self, limit: int) -> list[str]:
        """The ids of jobs whose video is to be fetched: interactive ones first, then the oldest."""
        rows = self._store.reading().execute(
            "SELECT id FROM jobs WHERE state = 'queued' AND source_ready = 0 "
            "ORDER BY priority = 'batch', sequence LIMIT ?",
            (limit,),
        )
        return [row["id"] for row in rows]

    def get(self, job_id: str) -> Fetch | None:
        """The fetch of a job; None if it is no longer wanted."""
        row = (
            self._store.reading()
            .execute(
                f"SELECT * FROM jobs JOIN fetches ON job_id = id WHERE {_WANTED}",  # noqa: S608 - a constant
                (job_id,),
            )
            .fetchone()
        )
        if row is None:
            return None
        return Fetch(
            job_id=row["id"],
            request_id=row["request_id"],
            url=row["url"],
            created_at=row["created_at"],
            expected_bytes=row["source_bytes"],
            received_bytes=row["source_received"] or 0,
            etag=row["etag"],
            modified=row["modified"],
        )

    def begin(
        self, job_id: str, *, expected_bytes: int | None, etag: str | None, modified: str | None
    ) -> bool:
        """Write down what is coming, from its first byte. False if it is no longer wanted."""
        with self._store.transaction() as connection:
            connection.execute(
                "UPDATE fetches SET etag = ?, modified = ? WHERE job_id = ?", (etag, modified, job_id)
            )
            return self._update(connection, job_id, "source_bytes = ?, source_received = 0", expected_bytes)

    def progress(self, job_id: str, received_bytes: int, *, is_all: bool = False) -> bool:
        """Write down that so many bytes are durable. False if the video is no longer wanted."""
        assignments = "source_received = ?, waiting = ?"
        values = (received_bytes, Waiting.SOURCE)
        with self._store.transaction(Program.WEB) as connection:
            if is_all:
                return self._update(
                    connection, job_id, f"{assignments}, source_bytes = ?", *values, received_bytes
                )
            return self._update(connection, job_id, assignments, *values)

    def say_waiting(self, job_id: str, waiting: Waiting) -> bool:
        """Say why nothing comes. False if the video is no longer wanted."""
        with self._store.transaction(Program.WEB) as connection:
            return self._update(connection, job_id, "waiting = ?", waiting)

    def complete(self, job_id: str, sha256: str) -> bool:
        """The video is whole and at its place: the job may be taken up. False if it is no longer wanted."""
        with self._store.transaction(Program.ENGINE, Program.WEB) as connection:
            is_wanted = self._update(
                connection, job_id, "source_ready = 1, waiting = NULL, source_sha256 = ?", sha256
            )
            self._forget(connection, job_id)
        return is_wanted

    def fail(self, job_id: str, error: FrameboxError) -> bool:
        """The video cannot be had, and the job has failed. False if it is no longer wanted."""
        problem = orjson.dumps(error.to_problem()).decode()
        with self._store.transaction(Program.WEB, Program.COURIER) as connection:
            is_wanted = self._update(
                connection,
                job_id,
                "state = 'failed', waiting = NULL, problem = ?, finished_at = ?",
                problem,
                time.time(),
            )
            self._forget(connection, job_id)
        return is_wanted

    def _update(
        self, connection: sqlite3.Connection, job_id: str, assignments: str, *values: str | float | None
    ) -> bool:
        query = f"UPDATE jobs SET {assignments} WHERE {_WANTED}"  # noqa: S608 - constants of this module
        return bool(connection.execute(query, (*values, job_id)).rowcount)

    def _forget(self, connection: sqlite3.Connection, job_id: str) -> None:
        connection.execute("DELETE FROM fetches WHERE job_id = ?", (job_id,))
