"""The jobs' records in SQLite: every change of state is one transaction, and final states stay.

The web side adds jobs and asks for their cancellation; the engine claims and ends them. The engine's
writes carry its *epoch*, a number that grows with every start of an engine: a writer of an older epoch
changes nothing and is told so by `LeaseLost`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from app.detection.model_facts import ModelStatus
from app.errors import JobIsActive, JobNotFound, Problem
from app.failpoints import fail_point
from app.jobs.attach import answers_key, check_same_request, is_equal
from app.jobs.engine_status import EngineStatus, HostStatus
from app.jobs.job import (
    Advance,
    Delivery,
    DeliveryState,
    Estimate,
    Job,
    JobRequest,
    JobState,
    Priority,
    Progress,
    SourceKind,
    VideoSource,
    Waiting,
)
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.storage.data_folder import new_job_id
from app.storage.ingest import FileIdentity
from app.video.sandbox_status import SandboxStatus
from app.wakeups import Program, Wakeups

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE jobs (
    sequence              INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of acceptance
    id                    TEXT NOT NULL UNIQUE,
    state                 TEXT NOT NULL
                          CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    epoch                 INTEGER,                            -- of the engine that runs or ended it
    request_id            TEXT NOT NULL,
    model                 TEXT NOT NULL,
    options               TEXT NOT NULL,                      -- DetectionOptions, JSON
    priority              TEXT NOT NULL CHECK (priority IN ('interactive', 'batch')),
    waiting               TEXT,                               -- why a queued job is not taken up
    source_kind           TEXT NOT NULL,
    source_bytes          INTEGER,                            -- NULL: not known before it is fetched
    source_sha256         TEXT,                               -- NULL: nobody has read them all
    source_name           TEXT,
    source_address        TEXT,                               -- of what was not uploaded, as given
    source_address_sha256 TEXT,                               -- of a whole URL, hex
    source_identity       TEXT,                               -- of a file that is read where it lies, JSON
    source_received       INTEGER,                            -- bytes that were fetched and are durable
    source_ready          INTEGER NOT NULL,                   -- 0: still to be fetched
    created_at            REAL NOT NULL,
    started_at            REAL,
    finished_at           REAL,
    used_at               REAL,                               -- when a later request was last given this job
    frames_done           INTEGER NOT NULL DEFAULT 0,
    frames_missing        INTEGER NOT NULL DEFAULT 0,
    frames_reached        INTEGER NOT NULL DEFAULT 0,         -- those of unfinished segments too
    frames_total          INTEGER,
    segments_done         INTEGER NOT NULL DEFAULT 0,
    segments_total        INTEGER,
    seconds_left          REAL,
    estimated_at          REAL,                               -- when the engine thought so
    cancel_requested      INTEGER NOT NULL DEFAULT 0,
    deaths                INTEGER NOT NULL DEFAULT 0,         -- of engines and hosts in a row, while it ran
    parts_at_death        TEXT NOT NULL DEFAULT '',           -- the trace of its parts when the last one died
    hangs                 INTEGER NOT NULL DEFAULT 0,         -- how often a model gave no answer at it
    problem               TEXT,                               -- a problem document, JSON
    report                TEXT                                -- DetectionReport, JSON
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, source_ready, priority, sequence);
CREATE INDEX jobs_of_state ON jobs (state, sequence);
CREATE INDEX jobs_by_content ON jobs (source_sha256);
CREATE INDEX jobs_by_address ON jobs (source_address) WHERE source_address IS NOT NULL;
CREATE INDEX jobs_by_deaths ON jobs (deaths) WHERE deaths > 0;
CREATE INDEX jobs_by_last_use ON jobs (max(finished_at, coalesce(used_at, 0)))
    WHERE state IN ('succeeded', 'failed', 'cancelled');
-- Idempotency-Key of requests
CREATE TABLE keys (key TEXT PRIMARY KEY, job_id TEXT NOT NULL) STRICT;
CREATE INDEX keys_by_job ON keys (job_id);
-- what is needed to fetch a video, and forgotten when it is there: a URL may be a secret
CREATE TABLE fetches (
    job_id   TEXT PRIMARY KEY,
    url      TEXT NOT NULL,
    etag     TEXT,
    modified TEXT
) STRICT;
CREATE TABLE deliveries (
    id           TEXT PRIMARY KEY,
    job_id       TEXT NOT NULL,
    url          TEXT NOT NULL,
    shown        TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'given_up')),
    attempts     INTEGER NOT NULL DEFAULT 0,
    last_status  INTEGER,
    last_error   TEXT,
    next_at      REAL,
    delivered_at REAL,
    UNIQUE (job_id, url)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE state = 'pending';
CREATE TRIGGER job_end_is_told AFTER UPDATE OF state ON jobs
    WHEN NEW.state IN ('succeeded', 'failed', 'cancelled') AND OLD.state IN ('queued', 'running')
    BEGIN UPDATE deliveries SET next_at = NEW.finished_at WHERE job_id = NEW.id AND state = 'pending'; END;
CREATE TABLE engine (
    only_row     INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch        INTEGER NOT NULL,
    pid          INTEGER NOT NULL,
    ready        INTEGER NOT NULL,
    heartbeat_at REAL NOT NULL,
    models       TEXT NOT NULL,  -- ModelStatus, JSON
    hosts        TEXT NOT NULL,  -- HostStatus, JSON
    sandbox      TEXT            -- SandboxStatus, JSON
) STRICT;
INSERT INTO engine VALUES (1, 0, 0, 0, 0, '[]', '[]', NULL);
CREATE TABLE courier (
    only_row     INTEGER PRIMARY KEY CHECK (only_row = 1),
    heartbeat_at REAL NOT NULL
) STRICT;
INSERT INTO courier VALUES (1, 0);
"""

_MODELS = TypeAdapter(tuple[ModelStatus, ...])
_HOSTS = TypeAdapter(tuple[HostStatus, ...])

ANY_DEATHS = range(2**31)
HOLD_SECONDS = 3 * 86400.0  # a job is kept for its callback no longer than this after its end

# A job with its callbacks, of which few have any.
_SELECT_JOB = """
SELECT jobs.*, (
    SELECT json_group_array(
        json_array(id, shown, state, attempts, last_status, last_error, next_at, delivered_at)
    ) FROM deliveries WHERE job_id = jobs.id
) AS deliveries FROM jobs
"""


class LeaseLost(Exception):
    """The job is no longer this engine's to write: another epoch has it, or it has ended."""


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _source(row: sqlite3.Row) -> VideoSource:
    identity = row["source_identity"]
    return VideoSource(
        row["source_bytes"],
        row["source_sha256"],
        row["source_name"],
        SourceKind(row["source_kind"]),
        row["source_address"],
        FileIdentity(**orjson.loads(identity)) if identity else None,
        row["source_received"],
        row["source_address_sha256"],
    )


def _deliveries(row: sqlite3.Row) -> tuple[Delivery, ...]:
    found = orjson.loads(row["deliveries"]) if "deliveries" in row.keys() else []  # noqa: SIM118 - of values
    return tuple(Delivery(id_, shown, DeliveryState(state), *rest) for id_, shown, state, *rest in found)


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        state=JobState(row["state"]),
        request_id=row["request_id"],
        model=row["model"],
        options=DetectionOptions.model_validate_json(row["options"]),
        source=_source(row),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        progress=Progress(
            row["frames_done"],
            row["frames_total"],
            row["segments_done"],
            row["segments_total"],
            row["frames_missing"],
            row["frames_reached"],
        ),
        cancel_requested=bool(row["cancel_requested"]),
        problem=orjson.loads(row["problem"]) if row["problem"] else None,
        report=DetectionReport.model_validate_json(row["report"]) if row["report"] else None,
        priority=Priority(row["priority"]),
        waiting=Waiting(row["waiting"]) if row["waiting"] else None,
        estimate=None if row["seconds_left"] is None else Estimate(row["seconds_left"], row["estimated_at"]),
        deliveries=_deliveries(row),
        deaths=row["deaths"],
        hangs=row["hangs"],
    )


def _job_of_key(
    connection: sqlite3.Connection,
    request: JobRequest,
    source: VideoSource | None,
    *,
    size_bytes: int | None = None,
    stated_sha256: str | None = None,
) -> Job | None:
    """The job that the request's key stands for, if it has one that answers it. IdempotencyConflict."""
    if request.idempotency_key is None:
        return None
    query = "SELECT jobs.* FROM jobs JOIN keys ON keys.job_id = jobs.id WHERE keys.key = ?"
    row = connection.execute(query, (request.idempotency_key,)).fetchone()
    if row is None:
        return None
    job = _job(row)
    if source is None:
        check_same_request(job, request, size_bytes=size_bytes, claim=stated_sha256)
    else:
        check_same_request(job, request, claim=source.claim)
    return job if answers_key(job) else None


def _equal_job(connection: sqlite3.Connection, request: JobRequest, source: VideoSource) -> Job | None:
    """The newest job whose document answers the request too."""
    if not request.may_attach:
        return None
    column = "source_address" if source.sha256 is None else "source_sha256"
    query = f"SELECT * FROM jobs WHERE {column} = ? ORDER BY sequence DESC"  # noqa: S608 - one of two constants
    jobs = map(_job, connection.execute(query, (source.sha256 or source.address,)))
    return next((job for job in jobs if is_equal(job, request, source)), None)


def _give_again(connection: sqlite3.Connection, job: Job, request: JobRequest) -> None:
    """A job that somebody now waits for is no longer in no hurry, and is kept as long as a new one."""
    _remember_key(connection, request, job.id)
    _remember_callback(connection, request, job.id, due_at=time.time() if job.state.is_final else None)
    connection.execute("UPDATE jobs SET used_at = ? WHERE id = ?", (time.time(), job.id))
    if request.priority is Priority.INTERACTIVE:
        connection.execute("UPDATE jobs SET priority = 'interactive' WHERE id = ?", (job.id,))


def _remember_key(connection: sqlite3.Connection, request: JobRequest, job_id: str) -> None:
    if request.idempotency_key is not None:
        connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (request.idempotency_key, job_id))


def _remember_callback(
    connection: sqlite3.Connection, request: JobRequest, job_id: str, *, due_at: float | None = None
) -> None:
    """The same request again is told once. `due_at`: of a job that has ended; else its end will say."""
    if request.callback is not None:
        connection.execute(
            "INSERT OR IGNORE INTO deliveries (id, job_id, url, shown, next_at) VALUES (?, ?, ?, ?, ?)",
            (f"msg_{new_job_id()}", job_id, request.callback.url, request.callback.shown, due_at),
        )


def _count_deaths(connection: sqlite3.Connection, part_traces: Mapping[str, str]) -> None:
    connection.executemany(
        """
        UPDATE jobs SET deaths = CASE WHEN parts_at_death = :parts THEN deaths + 1 ELSE 0 END,
                        parts_at_death = :parts
        WHERE id = :id AND state = 'running'
        """,
        [{"id": job_id, "parts": trace} for job_id, trace in part_traces.items()],
    )


def _for_callback(request: JobRequest) -> tuple[Program, ...]:
    return () if request.callback is None else (Program.COURIER,)


def _forget(connection: sqlite3.Connection, job_id: str) -> None:
    for table in ("keys", "fetches", "deliveries"):
        connection.execute(f"DELETE FROM {table} WHERE job_id = ?", (job_id,))  # noqa: S608 - constants


_MOST_SPARE_CONNECTIONS = 1  # a job mostly begins after another has ended


class JobStore:
    """The jobs of one data folder. Safe to use from many threads and processes at once.

    Every change wakes the programs that wait for it, once it is committed.
    """

    def __init__(self, database: Path, wakeups: Wakeups | None = None) -> None:
        """`wakeups` is None for whoever only reads."""
        self._database = database
        self._wakeups = wakeups
        self._local = threading.local()
        self._spare: list[sqlite3.Connection] = []  # that threads have let go of

    def create(self) -> None:
        """Make the database, if there is none. RuntimeError if another release wrote it."""
        with self._transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == SCHEMA_VERSION:
                return  # nothing is written: this must go well on a full disk
            if version:
                raise RuntimeError(
                    f"The data folder was written by another release: its database is of version {version}, "
                    f"and this release reads version {SCHEMA_VERSION} only."
                )
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the calling thread's connection, if it has one, and those that threads have let go of."""
        self.release()
        while self._spare:
            self._spare.pop().close()

    def release(self) -> None:
        """Let other threads have the calling thread's connection: a new one costs a sync of the folder."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            self._spare.append(connection)
        while len(self._spare) > _MOST_SPARE_CONNECTIONS:
            self._spare.pop().close()

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._spare_connection()
        return connection

    def _spare_connection(self) -> sqlite3.Connection:
        try:
            return self._spare.pop()
        except IndexError:
            connection = sqlite3.connect(
                self._database, timeout=30, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL: a commit is on disk when it returns, so that an acknowledged job survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            return connection

    @contextmanager
    def _transaction(self, *woken: Program, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction; it wakes the programs `woken` if it changed anything.

        What is not `durable` is seen at once, but a power cut may undo it, until the next one that is.
        """
        connection = self._connect()
        if not durable:
            connection.execute("PRAGMA synchronous = NORMAL")
        try:
            connection.execute("BEGIN IMMEDIATE")
            before = connection.total_changes
            yield connection
            fail_point("record_written")
            connection.execute("COMMIT")
            fail_point("record_committed")
        except BaseException:
            if connection.in_transaction:  # a full disk may have ended it
                connection.execute("ROLLBACK")
            raise
        finally:
            if not durable:
                connection.execute("PRAGMA synchronous = FULL")
        if connection.total_changes != before:
            self._wake(*woken)

    def _wake(self, *programs: Program) -> None:
        if self._wakeups is not None:
            self._wakeups.wake(*programs)

    def transaction(self, *woken: Program) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction, for the modules that keep further tables in this database; see `_transaction`."""
        return self._transaction(*woken)

    def reading(self) -> sqlite3.Connection:
        """The calling thread's connection, for those modules: to read with."""
        return self._connect()

    # ---- asked by anyone

    def get(self, job_id: str) -> Job:
        return self._get(self._connect(), job_id)

    def _get(self, connection: sqlite3.Connection, job_id: str) -> Job:
        row = connection.execute(f"{_SELECT_JOB} WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise JobNotFound(f"There is no job {job_id!r}.")
        return _job(row)

    def get_many(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """Return the jobs of `job_ids` that there are, by id."""
        query = f"{_SELECT_JOB} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608 - a constant
        rows = self._connect().execute(query, (_json([*job_ids]),))
        return {row["id"]: _job(row) for row in rows}

    def list(self, *, state: JobState | None = None, limit: int = 50, before: str | None = None) -> list[Job]:
        """Return at most `limit` jobs, newest first; `before` is the id of the last job already seen."""
        wanted = {
            "state = :state": state is not None,
            "sequence < (SELECT sequence FROM jobs WHERE id = :before)": before is not None,
        }
        conditions = " AND ".join(text for text, is_wanted in wanted.items() if is_wanted) or "TRUE"
        query = f"{_SELECT_JOB} WHERE {conditions} ORDER BY sequence DESC LIMIT :limit"
        values = {"state": state, "before": before, "limit": limit}
        return [_job(row) for row in self._connect().execute(query, values)]

    def ids(self) -> set[str]:
        return {row["id"] for row in self._connect().execute("SELECT id FROM jobs")}

    def counts(self) -> dict[JobState, int]:
        rows = self._connect().execute("SELECT state, count(*) FROM jobs GROUP BY state")
        found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    def active_count(self) -> int:
        """How many jobs are queued or running; takes no longer for all those that have ended."""
        query = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"
        (count,) = self._connect().execute(query).fetchone()
        return int(count)

    def data_version(self) -> int:
        """A number that changes whenever another connection has changed the database. Costs microseconds."""
        (version,) = self._connect().execute("PRAGMA data_version").fetchone()
        return int(version)

    def engine_status(self) -> EngineStatus:
        row = self._connect().execute("SELECT * FROM engine").fetchone()
        return EngineStatus(
            epoch=row["epoch"],
            pid=row["pid"],
            ready=bool(row["ready"]),
            heartbeat_at=row["heartbeat_at"],
            models=_MODELS.validate_json(row["models"]),
            hosts=_HOSTS.validate_json(row["hosts"]),
            sandbox=SandboxStatus.model_validate_json(row["sandbox"]) if row["sandbox"] else None,
        )

    def courier_heartbeat_at(self) -> float:
        """When the courier last said that it lives, Unix seconds; 0 if it never did."""
        (heartbeat_at,) = self._connect().execute("SELECT heartbeat_at FROM courier").fetchone()
        return float(heartbeat_at)

    def report_courier(self) -> None:
        """Say that the courier lives."""
        with self._transaction(durable=False) as connection:
            connection.execute("UPDATE courier SET heartbeat_at = ?", (time.time(),))

    # ---- the web side

    def add(self, job_id: str, request: JobRequest, source: VideoSource) -> Job:
        """Accept a job whose video is already on disk; it is durable when this returns.

        Returns the job that the request was given before, with another id, if its key or its content and
        options had one (`app.jobs.attach`). Raises IdempotencyConflict.
        """
        ready_for = Program.ENGINE if source.url is None else Program.COURIER
        with self._transaction(ready_for, *_for_callback(request)) as connection:
            earlier = _job_of_key(connection, request, source) or _equal_job(connection, request, source)
            if earlier is not None:
                _give_again(connection, earlier, request)
                return self._get(connection, earlier.id)
            connection.execute(
                """
                INSERT INTO jobs (id, state, request_id, model, options, source_bytes, source_sha256,
                                  source_name, created_at, priority, source_kind, source_address,
                                  source_identity, source_address_sha256, source_received, source_ready,
                                  waiting)
                VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                """,
                (
                    job_id,
                    request.request_id,
                    request.model,
                    request.options.model_dump_json(exclude_defaults=True),
                    source.size_bytes,
                    source.sha256,
                    source.name,
                    time.time(),
                    request.priority,
                    source.kind,
                    source.address,
                    None if source.identity is None else _json(source.identity),
                    source.address_sha256,
                    source.received_bytes,
                    source.url is None,
                    None if source.url is None else Waiting.SOURCE,
                ),
            )
            if source.url is not None:
                connection.execute("INSERT INTO fetches (job_id, url) VALUES (?, ?)", (job_id, source.url))
            _remember_key(connection, request, job_id)
            _remember_callback(connection, request, job_id)
            return self._get(connection, job_id)

    def attach(
        self,
        request: JobRequest,
        source: VideoSource | None,
        *,
        size_bytes: int | None,
        stated_sha256: str | None = None,
    ) -> Job | None:
        """Return the job that the request was given before; None if it needs one of its own.

        `source` is None, and `size_bytes` and `stated_sha256` what the client said or None, while the video
        has not been read: then the request's key alone can tell. Raises IdempotencyConflict.
        """
        if request.idempotency_key is None and not (request.may_attach and source):
            return None

        def find(connection: sqlite3.Connection) -> Job | None:
            earlier = _job_of_key(
                connection, request, source, size_bytes=size_bytes, stated_sha256=stated_sha256
            )
            return earlier or (None if source is None else _equal_job(connection, request, source))

        if find(self._connect()) is None:  # as mostly: nobody has to wait for anybody
            return None
        with self._transaction(Program.ENGINE, *_for_callback(request)) as connection:
            earlier = find(connection)
            if earlier is None:
                return None
            _give_again(connection, earlier, request)
            return self._get(connection, earlier.id)

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once; ask the engine to stop a running one. A final job stays as it is."""
        with self._transaction(*Program) as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', cancel_requested = 1, waiting = NULL, finished_at = ? "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), job_id),
            )
            connection.execute(
                "DELETE FROM fetches WHERE job_id IN "
                "(SELECT id FROM jobs WHERE id = ? AND state = 'cancelled')",
                (job_id,),
            )
            connection.execute(
                "UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND state = 'running'", (job_id,)
            )
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended. Raises JobIsActive for any other."""
        with self._transaction(Program.WEB) as connection:
            deleted = connection.execute(
                "DELETE FROM jobs WHERE id = ? AND state IN ('succeeded', 'failed', 'cancelled')", (job_id,)
            ).rowcount
            if deleted:
                _forget(connection, job_id)
        if not deleted:
            job = self.get(job_id)
            raise JobIsActive(f"Job {job_id} is {job.state}; it can be deleted once it has ended.")

    # ---- the engine

    def running(self) -> set[str]:
        """The ids of the jobs that are running, or that an engine was running when it ended."""
        return {row["id"] for row in self._connect().execute("SELECT id FROM jobs WHERE state = 'running'")}

    def begin_epoch(self, *, pid: int, part_traces: Mapping[str, str] | None = None) -> int:
        """Start an engine: return its epoch, and put what an older one was running back in the queue.

        `part_traces` tells of the parts of each of those, by its id: see `PartStore.trace`. If the older one
        had not said that it stops, it died: that counts at each job that made no part since the last death.
        The caller holds the data folder's engine lock, so no older engine lives.
        """
        with self._transaction(Program.WEB) as connection:
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
        """Count the death of a host at each job that made no part since the last one; return those jobs.

        `part_traces`: as of `begin_epoch`, of jobs that run. `hung` is the one at which a model gave no
        answer, if that was the reason: it alone is counted, and that as a hang.
        """
        with self._transaction() as connection:
            if hung is None:
                _count_deaths(connection, part_traces)
            else:
                connection.execute(
                    "UPDATE jobs SET hangs = hangs + 1 WHERE id = ? AND epoch = ? AND state = 'running'",
                    (hung, epoch),
                )
        return (*self.get_many(part_traces).values(),)

    def report_engine(
        self,
        epoch: int,
        *,
        ready: bool,
        models: Sequence[ModelStatus] | None = None,
        hosts: Sequence[HostStatus] | None = None,
        sandbox: SandboxStatus | None = None,
        advances: Mapping[str, Advance] | None = None,
    ) -> None:
        """Say that the engine of `epoch` lives, and how far its running jobs are, by their ids.

        What is None stays as it was.
        """
        now = time.time()
        with self._transaction(durable=not ready) as connection:
            connection.execute(
                "UPDATE engine SET ready = ?, heartbeat_at = ?, "
                "models = coalesce(?, models), hosts = coalesce(?, hosts), sandbox = coalesce(?, sandbox) "
                "WHERE epoch = ?",
                (
                    ready,
                    now,
                    None if models is None else _MODELS.dump_json(tuple(models)).decode(),
                    None if hosts is None else _HOSTS.dump_json(tuple(hosts)).decode(),
                    None if sandbox is None else sandbox.model_dump_json(),
                    epoch,
                ),
            )
            connection.executemany(
                "UPDATE jobs SET frames_reached = ?, frames_total = coalesce(?, frames_total), "
                "segments_total = coalesce(?, segments_total), seconds_left = ?, estimated_at = ? "
                "WHERE id = ? AND epoch = ? AND state = 'running'",
                [(*astuple(advance), now, job_id, epoch) for job_id, advance in (advances or {}).items()],
            )

    def claim(
        self,
        epoch: int,
        priorities: Sequence[Priority] = tuple(Priority),
        *,
        without_models: Collection[str] = (),
        only_model: str | None = None,
        deaths: range = ANY_DEATHS,
    ) -> Job | None:
        """Take the oldest queued job of the first of `priorities` that has one; None if there is none.

        It is now running and this epoch's. Jobs for `without_models` are passed over, and those that are not
        for `only_model`, if that is given, or at which another number of engines died than are in `deaths`.
        """
        passed_over = _json([*without_models])
        limits = (only_model, deaths.start, deaths.stop)
        if not self._has_any_queued():
            return None
        with self._transaction(Program.WEB, durable=False) as connection:
            for priority in priorities:
                row = connection.execute(
                    """
                    UPDATE jobs SET state = 'running', epoch = ?, waiting = NULL, seconds_left = NULL,
                                    frames_reached = 0, started_at = coalesce(started_at, ?)
                    WHERE sequence = (
                        SELECT min(sequence) FROM jobs
                        WHERE state = 'queued' AND source_ready = 1 AND priority = ?
                          AND model NOT IN (SELECT value FROM json_each(?))
                          AND model = coalesce(?, model) AND deaths >= ? AND deaths < ?
                    )
                    RETURNING *
                    """,
                    (epoch, time.time(), priority, passed_over, *limits),
                ).fetchone()
                if row is not None:
                    return _job(row)
        return None

    def _has_any_queued(self) -> bool:
        query = "SELECT 1 FROM jobs WHERE state = 'queued' AND source_ready = 1 LIMIT 1"
        return self._connect().execute(query).fetchone() is not None

    def has_queued(self, *, deaths: int) -> bool:
        """Whether a job waits at which so many engines died, one or more. Costs nothing if there is none."""
        query = (
            "SELECT 1 FROM jobs WHERE deaths > 0 AND deaths >= ? AND state = 'queued' AND source_ready = 1"
        )
        return self._connect().execute(query, (deaths,)).fetchone() is not None

    def queued_models(self, among: Collection[str]) -> set[str]:
        """Those of the models `among` for which jobs wait."""
        if not among:
            return set()
        query = (
            "SELECT DISTINCT model FROM jobs WHERE state = 'queued' AND source_ready = 1 "
            "AND model IN (SELECT value FROM json_each(?))"
        )
        return {row["model"] for row in self._connect().execute(query, (_json([*among]),))}

    def put_back(self, job_id: str, epoch: int, waiting: Waiting | None = None) -> None:
        """Return a running job to the queue: the engine stops before it is done, or something is missing."""
        self._write_running(job_id, epoch, "state = 'queued', waiting = ?", (waiting,), durable=False)

    def say_waiting(self, waiting: Waiting | None, *, crowded_models: Collection[str] = ()) -> None:
        """Say of all queued jobs why they are not taken up; None: they are.

        Those for `crowded_models` wait for memory.
        """
        reason = "CASE WHEN model IN (SELECT value FROM json_each(?)) THEN ? ELSE ? END"
        values = (_json([*crowded_models]), Waiting.MODEL_MEMORY, waiting)
        differing = f"state = 'queued' AND source_ready = 1 AND waiting IS NOT {reason}"
        query = f"SELECT 1 FROM jobs WHERE {differing} LIMIT 1"  # noqa: S608 - constants of this method
        if self._connect().execute(query, values).fetchone() is None:
            return
        with self._transaction(Program.WEB, durable=False) as connection:
            update = f"UPDATE jobs SET waiting = {reason} WHERE {differing}"  # noqa: S608 - likewise
            connection.execute(update, values + values)

    def oldest_ended(self, *, before: float, limit: int) -> tuple[str, ...]:
        """The ids of jobs that ended and were last given to anybody before that time, oldest first.

        A job whose end is still to be told is not among them, unless that takes longer than HOLD_SECONDS.
        """
        rows = self._connect().execute(
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
        """Write down how far a running job is. `report` stays as it was if None."""
        self._write_running(job_id, epoch, "state = state", (), progress, report, durable=False)

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
        """End a running job for good. What is None stays as it was. Raises LeaseLost if it is not ours."""
        if not state.is_final:
            raise ValueError(f"{state} is no end")
        self._write_running(
            job_id,
            epoch,
            "state = ?, finished_at = ?, problem = ?",
            (state, time.time(), None if problem is None else _json(problem)),
            progress,
            report,
        )
        if self._connect().execute("SELECT 1 FROM deliveries WHERE job_id = ?", (job_id,)).fetchone():
            self._wake(Program.COURIER)

    def cancel_requests(self, epoch: int) -> set[str]:
        """The ids of this epoch's running jobs whose cancellation was asked for."""
        rows = self._connect().execute(
            "SELECT id FROM jobs WHERE state = 'running' AND epoch = ? AND cancel_requested = 1", (epoch,)
        )
        return {row["id"] for row in rows}

    def _write_running(
        self,
        job_id: str,
        epoch: int,
        assignments: str,
        values: tuple[Any, ...] = (),
        progress: Progress | None = None,
        report: DetectionReport | None = None,
        *,
        durable: bool = True,
    ) -> None:
        if progress is not None:
            assignments += ", frames_done = ?, frames_total = ?, segments_done = ?, segments_total = ?"
            assignments += ", frames_missing = ?"
            values += (
                progress.frames_done,
                progress.frames_total,
                progress.segments_done,
                progress.segments_total,
                progress.frames_missing,
            )
        if report is not None:
            assignments += ", report = ?"
            values += (report.model_dump_json(),)
        with self._transaction(Program.WEB, durable=durable) as connection:
            changed = connection.execute(
                f"UPDATE jobs SET {assignments} "  # noqa: S608 - constants of this module
                "WHERE id = ? AND epoch = ? AND state = 'running'",
                (*values, job_id, epoch),
            ).rowcount
        if not changed:
            raise LeaseLost(job_id)
