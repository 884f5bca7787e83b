"""The jobs as the engine sees them: a queue of all owners' jobs, claimed and ended under its epoch.

The *epoch* is a number that grows with every start of an engine. A write of an older epoch changes nothing
and raises LeaseLost. Every change of state is one transaction, and final states stay.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import orjson

from app.errors import Problem
from app.jobs.database import Database
from app.jobs.job import Advance, Job, JobState, Priority, Progress, Waiting
from app.jobs.rows import SELECT_JOB, job_of_row
from app.pipeline.report import DetectionReport
from app.wakeups import Program

ANY_DEATHS = range(2**31)
HOLD_SECONDS = 3 * 86400.0  # a finished job is kept at most this long for a callback that is still due
# The progress that changes with a segment's end: columns, and members of Progress.
_SETTLED = ("frames_done", "frames_total", "segments_done", "segments_total", "frames_missing")
_READY = "state = 'queued' AND source_ready = 1"


@dataclass(frozen=True, slots=True)
class Claim:
    """Which queued job to start: the oldest that matches, of the first priority that has one."""

    priorities: Sequence[Priority] = tuple(Priority)
    without_models: Collection[str] = ()
    only_model: str | None = None  # None: any
    deaths: range = ANY_DEATHS


ANY_JOB = Claim()


class LeaseLost(Exception):
    """The job belongs to another epoch, or has ended: this engine must not write to it."""


class JobQueue:
    """Safe to use from many threads and processes. Every change wakes the programs that wait for it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ids(self) -> set[str]:
        """Return the ids of all jobs, whatever their state."""
        return self._ids("TRUE")

    def running(self) -> set[str]:
        """Return the ids of the jobs that are running, or that an engine was running when it ended."""
        return self._ids("state = 'running'")

    def ended(self) -> set[str]:
        """Return the ids of the jobs that have ended and are still known."""
        return self._ids("state IN ('succeeded', 'failed', 'cancelled')")

    def cancel_requests(self, epoch: int) -> set[str]:
        """Return the ids of this epoch's running jobs that are to be cancelled."""
        return self._ids("state = 'running' AND epoch = ? AND cancel_requested = 1", epoch)

    def _ids(self, condition: str, *values: object) -> set[str]:
        query = f"SELECT id FROM jobs WHERE {condition}"  # noqa: S608 - constants of this module
        return {row["id"] for row in self._database.read(query, values)}

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        found = dict(self._database.read("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in JobState}

    def begin_epoch(self, *, pid: int, part_traces: Mapping[str, str] | None = None) -> int:
        """Start an engine: return its epoch, and put the jobs of the previous one back in the queue.

        If the previous engine did not announce its stop, it died. A death counts against each of its jobs
        that made no part since the last death. `part_traces` has the trace of each job's parts, by job id:
        see `PartStore.trace`. The caller holds the data folder's engine lock, so no other engine is alive.
        """
        with self._database.transaction(Program.WEB) as connection:
            (was_ready,) = connection.execute("SELECT ready FROM engine").fetchone()
            if was_ready:
                _count_deaths(connection, part_traces or {})
            connection.execute(
                "UPDATE engine SET epoch = epoch + 1, pid = ?, ready = 0, heartbeat_at = ?, hosts = '[]'",
                (pid, time.time()),
            )
            connection.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
            (epoch,) = connection.execute("SELECT epoch FROM engine").fetchone()
        return int(epoch)

    def count_deaths(self, epoch: int, part_traces: Mapping[str, str], *, hung: str | None) -> Sequence[Job]:
        """Count the death of a host against its jobs that made no part since the last one; return its jobs.

        `part_traces`: as for `begin_epoch`. If the host was replaced because a model timed out, `hung` is the
        job it was working on; then only that job is counted, as a hang.
        """
        with self._database.transaction() as connection:
            if hung is None:
                _count_deaths(connection, part_traces)
            else:
                connection.execute(
                    "UPDATE jobs SET hangs = hangs + 1 WHERE id = ? AND epoch = ? AND state = 'running'",
                    (hung, epoch),
                )
        query = f"{SELECT_JOB} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608 - a constant
        rows = self._database.read(query, (_json([*part_traces]),))
        return [job_of_row(row) for row in rows]

    def report_progress(self, epoch: int, advances: Mapping[str, Advance]) -> None:
        """Record how far running jobs are between two segments, by their ids."""
        if not advances:
            return
        now = time.time()
        with self._database.transaction(durable=False) as connection:
            connection.executemany(
                "UPDATE jobs SET frames_reached = ?, frames_total = coalesce(?, frames_total), "
                "segments_total = coalesce(?, segments_total), seconds_left = ?, estimated_at = ? "
                "WHERE id = ? AND epoch = ? AND state = 'running'",
                [(*astuple(advance), now, job_id, epoch) for job_id, advance in advances.items()],
            )

    def claim(self, epoch: int, claim: Claim = ANY_JOB) -> Job | None:
        """Start the queued job that `claim` describes, under this epoch; None if there is none."""
        if self._database.read(f"SELECT 1 FROM jobs WHERE {_READY} LIMIT 1").fetchone() is None:  # noqa: S608
            return None  # as mostly: nothing has to be locked
        with self._database.transaction(Program.WEB, durable=False) as connection:
            skipped, deaths = _json([*claim.without_models]), claim.deaths
            for priority in claim.priorities:
                row = connection.execute(
                    f"""
                    UPDATE jobs SET state = 'running', epoch = ?, waiting = NULL, seconds_left = NULL,
                                    frames_reached = 0, started_at = coalesce(started_at, ?)
                    WHERE sequence = (
                        SELECT min(sequence) FROM jobs
                        WHERE {_READY} AND priority = ?
                          AND model NOT IN (SELECT value FROM json_each(?))
                          AND model = coalesce(?, model) AND deaths >= ? AND deaths < ?
                    )
                    RETURNING *
                    """,  # noqa: S608 - a constant
                    (epoch, time.time(), priority, skipped, claim.only_model, deaths.start, deaths.stop),
                ).fetchone()
                if row is not None:
                    return job_of_row(row)
        return None

    def has_queued(self, *, deaths: int) -> bool:
        """Return whether a queued job has seen that many deaths, at least one. Uses an index of such jobs."""
        query = f"SELECT 1 FROM jobs WHERE deaths > 0 AND deaths >= ? AND {_READY}"  # noqa: S608 - a constant
        return self._database.read(query, (deaths,)).fetchone() is not None

    def queued_models(self, among: Collection[str]) -> set[str]:
        """Return those of the models `among` for which jobs are queued."""
        if not among:
            return set()
        chosen = "model IN (SELECT value FROM json_each(?))"
        query = f"SELECT DISTINCT model FROM jobs WHERE {_READY} AND {chosen}"  # noqa: S608 - constants
        return {row["model"] for row in self._database.read(query, (_json([*among]),))}

    def put_back(self, job_id: str, epoch: int, waiting: Waiting | None = None) -> None:
        """Return a running job to the queue: the engine is stopping, or something is missing. LeaseLost."""
        self._write_running(job_id, epoch, {"state": JobState.QUEUED, "waiting": waiting}, durable=False)

    def say_waiting(self, waiting: Waiting | None, *, crowded_models: Collection[str] = ()) -> None:
        """Record why queued jobs do not start; None: nothing keeps them but the jobs before them.

        Those for `crowded_models` wait for memory.
        """
        reason = "CASE WHEN model IN (SELECT value FROM json_each(?)) THEN ? ELSE ? END"
        values = (_json([*crowded_models]), Waiting.MODEL_MEMORY, waiting)
        differing = f"{_READY} AND waiting IS NOT {reason}"
        query = f"SELECT 1 FROM jobs WHERE {differing} LIMIT 1"  # noqa: S608 - constants of this method
        if self._database.read(query, values).fetchone() is None:
            return
        with self._database.transaction(Program.WEB, durable=False) as connection:
            update = f"UPDATE jobs SET waiting = {reason} WHERE {differing}"  # noqa: S608 - likewise
            connection.execute(update, values + values)

    def oldest_ended(self, *, before: float, limit: int) -> tuple[str, ...]:
        """Return the ids of jobs that ended, and were last returned to a request, before that time.

        The oldest come first. A job with a pending callback is left out for up to HOLD_SECONDS.
        """
        rows = self._database.read(
            """
            SELECT id FROM jobs INDEXED BY jobs_by_last_use
            WHERE state IN ('succeeded', 'failed', 'cancelled') AND max(finished_at, coalesce(used_at, 0)) < ?
              AND NOT (finished_at > ? AND EXISTS (
                  SELECT 1 FROM deliveries WHERE job_id = jobs.id AND deliveries.state = 'pending'
              ))
            ORDER BY max(finished_at, coalesce(used_at, 0)) LIMIT ?
            """,
            (before, time.time() - HOLD_SECONDS, limit),
        )
        return tuple(row["id"] for row in rows)

    def update(
        self, job_id: str, epoch: int, progress: Progress, report: DetectionReport | None = None
    ) -> None:
        """Record the progress of a running job, and its report if that is not None. Raises LeaseLost."""
        self._write_running(job_id, epoch, {}, progress, report, durable=False)

    def finish(
        self,
        job_id: str,
        epoch: int,
        state: JobState,
        *,
        problem: Problem | None = None,
        progress: Progress | None = None,
        report: DetectionReport | None = None,
    ) -> None:
        """End a running job for good. Arguments that are None keep their recorded value. Raises LeaseLost."""
        if not state.is_final:
            raise ValueError(f"{state} is not a final state")
        ending = {
            "state": state,
            "finished_at": time.time(),
            "problem": None if problem is None else _json(problem),
        }
        self._write_running(job_id, epoch, ending, progress, report)
        if self._database.read("SELECT 1 FROM deliveries WHERE job_id = ?", (job_id,)).fetchone():
            self._database.wake(Program.COURIER)

    def delete(self, job_id: str) -> bool:
        """Forget a job that has ended; False if there is no such job."""
        with self._database.transaction(Program.WEB) as connection:
            return delete_ended(connection, job_id)

    def _write_running(
        self,
        job_id: str,
        epoch: int,
        changes: dict[str, Any],
        progress: Progress | None = None,
        report: DetectionReport | None = None,
        *,
        durable: bool = True,
    ) -> None:
        if progress is not None:
            changes |= {name: getattr(progress, name) for name in _SETTLED}
        if report is not None:
            changes |= {"report": report.model_dump_json(), "model_sha256": report.model.sha256}
        assignments = ", ".join(f"{name} = :{name}" for name in changes)
        query = f"UPDATE jobs SET {assignments} WHERE id = :id AND epoch = :epoch AND state = 'running'"  # noqa: S608 - names of columns
        with self._database.transaction(Program.WEB, durable=durable) as connection:
            changed = connection.execute(query, changes | {"id": job_id, "epoch": epoch}).rowcount
        if not changed:
            raise LeaseLost(job_id)


def delete_ended(connection: sqlite3.Connection, job_id: str) -> bool:
    """Delete the records of a job that has ended; False if it has not, or is not there."""
    condition = "id = ? AND state IN ('succeeded', 'failed', 'cancelled')"
    is_deleted = bool(connection.execute(f"DELETE FROM jobs WHERE {condition}", (job_id,)).rowcount)  # noqa: S608 - a constant
    for table in ("keys", "fetches", "deliveries") if is_deleted else ():
        connection.execute(f"DELETE FROM {table} WHERE job_id = ?", (job_id,))  # noqa: S608 - constants
    return is_deleted


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _count_deaths(connection: sqlite3.Connection, part_traces: Mapping[str, str]) -> None:
    connection.executemany(
        """
        UPDATE jobs SET deaths = CASE WHEN parts_at_death = :parts THEN deaths + 1 ELSE 0 END,
                        parts_at_death = :parts
        WHERE id = :id AND state = 'running'
        """,
        [{"id": job_id, "parts": trace} for job_id, trace in part_traces.items()],
    )
