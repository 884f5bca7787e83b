"""The jobs as their owners see them: added, found, listed, cancelled and deleted.

Every function takes the owner, and sees that owner's jobs only. The engine's view is `app.jobs.queue`.
Every change of state is one transaction, and final states stay.
"""

from __future__ import annotations

import builtins
import sqlite3
import time
from collections.abc import Collection

import orjson

from app.errors import JobIsActive, JobNotFound
from app.jobs.attach import answering_job, question
from app.jobs.database import Database
from app.jobs.job import Job, JobRequest, JobState, Priority, VideoSource, Waiting
from app.jobs.queue import delete_ended
from app.jobs.rows import SELECT_JOB, job_of_row
from app.storage.data_folder import new_job_id
from app.wakeups import Program


class JobStore:
    """Safe to use from many threads and processes. Every change wakes the programs that wait for it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, job_id: str, *, owner: str) -> Job:
        """Return the job. Raises JobNotFound."""
        row = self._database.read(f"{SELECT_JOB} WHERE id = ? AND owner = ?", (job_id, owner)).fetchone()
        if row is None:
            raise JobNotFound(f"There is no job {job_id!r}.")
        return job_of_row(row)

    def find(self, job_ids: Collection[str], *, owner: str) -> dict[str, Job]:
        """Return those of the jobs `job_ids` that exist, by id."""
        query = f"{SELECT_JOB} WHERE id IN (SELECT value FROM json_each(?)) AND owner = ?"  # noqa: S608
        rows = self._database.read(query, (orjson.dumps([*job_ids]).decode(), owner))
        return {row["id"]: job_of_row(row) for row in rows}

    def list(
        self, *, owner: str, state: JobState | None = None, limit: int = 50, before: str | None = None
    ) -> builtins.list[Job]:
        """Return at most `limit` jobs, newest first. `before` is the id of the last job already seen."""
        conditions = ["owner = :owner"]
        if state is not None:
            conditions.append("state = :state")
        if before is not None:
            conditions.append("sequence < (SELECT sequence FROM jobs WHERE id = :before AND owner = :owner)")
        query = f"{SELECT_JOB} WHERE {' AND '.join(conditions)} ORDER BY sequence DESC LIMIT :limit"
        values = {"owner": owner, "state": state, "before": before, "limit": limit}
        return [job_of_row(row) for row in self._database.read(query, values)]

    def counts(self, *, owner: str) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        query = "SELECT state, count(*) FROM jobs WHERE owner = ? GROUP BY state"
        found = dict(self._database.read(query, (owner,)).fetchall())
        return {state: found.get(state, 0) for state in JobState}

    def active_count(self, *, owner: str) -> int:
        """Return how many jobs are queued or running. Does not get slower with the number of ended jobs."""
        query = "SELECT count(*) FROM jobs WHERE owner = ? AND state IN ('queued', 'running')"
        (count,) = self._database.read(query, (owner,)).fetchone()
        return int(count)

    # ---- a new request

    def attach(self, request: JobRequest, source: VideoSource, *, is_read: bool = True) -> Job | None:
        """Return the job that answers the request already; None if it needs its own: see `answering_job`."""
        if answering_job(self._database.read, request, source, is_read=is_read) is None:
            return None  # as mostly: nothing has to be locked
        with self._database.transaction(*_woken(request)) as connection:
            earlier = answering_job(connection.execute, request, source, is_read=is_read)
            return None if earlier is None else _use_again(connection, earlier, request)

    def add(self, job_id: str, request: JobRequest, source: VideoSource) -> Job:
        """Add a job whose video is on disk, or is to be fetched; it is durable on return.

        Returns the job that answers the request already, which has another id, if there is one. Raises
        IdempotencyConflict.
        """
        with self._database.transaction(*_woken(request, source)) as connection:
            earlier = answering_job(connection.execute, request, source, is_read=True)
            if earlier is not None:
                return _use_again(connection, earlier, request)
            _insert(connection, job_id, request, source)
            _remember(connection, job_id, request)
            return _get(connection, job_id)

    # ---- an end

    def request_cancel(self, job_id: str, *, owner: str) -> Job:
        """Cancel a queued job at once; ask the engine to stop a running one. A job that ended stays as is."""
        with self._database.transaction(*Program) as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', cancel_requested = 1, waiting = NULL, finished_at = ? "
                "WHERE id = ? AND owner = ? AND state = 'queued'",
                (time.time(), job_id, owner),
            )
            connection.execute(
                "DELETE FROM fetches WHERE job_id IN "
                "(SELECT id FROM jobs WHERE id = ? AND owner = ? AND state = 'cancelled')",
                (job_id, owner),
            )
            connection.execute(
                "UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND owner = ? AND state = 'running'",
                (job_id, owner),
            )
        return self.get(job_id, owner=owner)

    def delete(self, job_id: str, *, owner: str) -> None:
        """Forget a job that has ended. Raises JobNotFound, JobIsActive."""
        self.get(job_id, owner=owner)
        with self._database.transaction(Program.WEB) as connection:
            is_deleted = delete_ended(connection, job_id)
        if not is_deleted:
            job = self.get(job_id, owner=owner)
            raise JobIsActive(f"Job {job_id} is {job.state}; it can be deleted once it has ended.")


def _woken(request: JobRequest, source: VideoSource | None = None) -> tuple[Program, ...]:
    """Return the programs that have something to do for a request."""
    is_fetched = source is not None and source.url is not None
    has_courier = is_fetched or request.callback is not None
    return (*(() if is_fetched else (Program.ENGINE,)), *((Program.COURIER,) if has_courier else ()))


def _get(connection: sqlite3.Connection, job_id: str) -> Job:
    query = f"{SELECT_JOB} WHERE id = ?"
    return job_of_row(connection.execute(query, (job_id,)).fetchone())


def _use_again(connection: sqlite3.Connection, job: Job, request: JobRequest) -> Job:
    """Let `job` answer `request` too: it is kept as long as a new one, and hurries if a caller waits."""
    _remember(connection, job.id, request, callback_due_at=time.time() if job.state.is_final else None)
    connection.execute("UPDATE jobs SET used_at = ? WHERE id = ?", (time.time(), job.id))
    if request.priority is Priority.INTERACTIVE:
        connection.execute("UPDATE jobs SET priority = 'interactive' WHERE id = ?", (job.id,))
    return _get(connection, job.id)


def _remember(
    connection: sqlite3.Connection, job_id: str, request: JobRequest, *, callback_due_at: float | None = None
) -> None:
    """Record the request's key and callback. The callback becomes due when the job ends, if it has not."""
    if request.idempotency_key is not None:
        values = (request.owner, request.idempotency_key, job_id)
        connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", values)
    if request.callback is not None:  # the same request again is called back once
        connection.execute(
            "INSERT OR IGNORE INTO deliveries (id, owner, job_id, url, shown, next_at) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                f"msg_{new_job_id()}",
                request.owner,
                job_id,
                request.callback.url,
                request.callback.shown,
                callback_due_at,
            ),
        )


def _insert(connection: sqlite3.Connection, job_id: str, request: JobRequest, source: VideoSource) -> None:
    identity = source.identity
    row = {
        "id": job_id,
        "owner": request.owner,
        "state": JobState.QUEUED,
        "request_id": request.request_id,
        "model": request.model,
        "options": request.options.model_dump_json(exclude_defaults=True),
        "priority": request.priority,
        "waiting": None if source.url is None else Waiting.SOURCE,
        "source_kind": source.kind,
        "source_bytes": source.size_bytes,
        "source_sha256": source.sha256,
        "source_name": source.name,
        "source_address": source.address,
        "source_address_sha256": source.address_sha256,
        "source_identity": None if identity is None else orjson.dumps(identity).decode(),
        "source_received": source.received_bytes,
        "source_ready": source.url is None,
        "content_key": source.content_key,
        "question": question(request),
        "created_at": time.time(),
    }
    names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO jobs ({names}) VALUES ({values})", row)  # noqa: S608 - constants
    if source.url is not None:
        connection.execute("INSERT INTO fetches (job_id, url) VALUES (?, ?)", (job_id, source.url))
