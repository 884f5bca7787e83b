"""The database of a data folder: its connections, its transactions, and its one schema.

What the tables mean is said where they are used: `app.jobs.store` (jobs, as their owners see them),
`app.jobs.queue` (jobs, as the engine sees them), `fetches`, `deliveries` and `heartbeats`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.failpoints import fail_point
from app.wakeups import Program, Wakeups

Values = Sequence[Any] | Mapping[str, Any]  # of a statement's parameters

SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE jobs (
    sequence              INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of acceptance
    id                    TEXT NOT NULL UNIQUE,
    owner                 TEXT NOT NULL,                      -- whose job it is: see app/jobs/job.py
    state                 TEXT NOT NULL
                          CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    epoch                 INTEGER,                            -- of the engine that runs or ended it
    request_id            TEXT NOT NULL,
    model                 TEXT NOT NULL,
    options               TEXT NOT NULL,                      -- DetectionOptions, JSON
    priority              TEXT NOT NULL CHECK (priority IN ('interactive', 'batch')),
    waiting               TEXT,                               -- why a queued job does not start
    source_kind           TEXT NOT NULL,
    source_bytes          INTEGER,                            -- NULL: unknown before it is fetched
    source_sha256         TEXT,                               -- NULL: not computed
    source_name           TEXT,
    source_address        TEXT,                               -- of a path or URL, as given
    source_address_sha256 TEXT,                               -- of a whole URL, hex
    source_identity       TEXT,                               -- of a file in an ingest folder, JSON
    source_received       INTEGER,                            -- bytes fetched so far, for the report
    source_ready          INTEGER NOT NULL,                   -- 0: still to be fetched
    content_key           TEXT,                               -- equal: the same video; NULL: unknown
    question              TEXT NOT NULL,                      -- equal: the same model and options
    model_sha256          TEXT,                               -- of the model that ran; NULL: not yet known
    created_at            REAL NOT NULL,
    started_at            REAL,
    finished_at           REAL,
    used_at               REAL,                               -- when a later request last got this job
    frames_done           INTEGER NOT NULL DEFAULT 0,
    frames_missing        INTEGER NOT NULL DEFAULT 0,
    frames_reached        INTEGER NOT NULL DEFAULT 0,         -- those of unfinished segments too
    frames_total          INTEGER,
    segments_done         INTEGER NOT NULL DEFAULT 0,
    segments_total        INTEGER,
    seconds_left          REAL,
    estimated_at          REAL,                               -- when the engine made that estimate
    cancel_requested      INTEGER NOT NULL DEFAULT 0,
    deaths                INTEGER NOT NULL DEFAULT 0,         -- of engines and hosts in a row, while it ran
    parts_at_death        TEXT NOT NULL DEFAULT '',           -- the trace of its parts at the last death
    hangs                 INTEGER NOT NULL DEFAULT 0,         -- how often a model timed out on it
    problem               TEXT,                               -- a problem document, JSON
    report                TEXT                                -- DetectionReport, JSON
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, source_ready, priority, sequence);
CREATE INDEX jobs_of_owner ON jobs (owner, sequence);
CREATE INDEX jobs_of_owner_in_state ON jobs (owner, state, sequence);
CREATE INDEX jobs_by_answer ON jobs (owner, content_key, question, model_sha256, sequence)
    WHERE cancel_requested = 0 AND state IN ('queued', 'running', 'succeeded');
CREATE INDEX jobs_by_deaths ON jobs (deaths) WHERE deaths > 0;
CREATE INDEX jobs_by_last_use ON jobs (max(finished_at, coalesce(used_at, 0)))
    WHERE state IN ('succeeded', 'failed', 'cancelled');
-- Idempotency-Key of requests
CREATE TABLE keys (
    owner  TEXT NOT NULL,
    key    TEXT NOT NULL,
    job_id TEXT NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT;
CREATE INDEX keys_by_job ON keys (job_id);
-- what is needed to fetch a video; deleted once the fetch ends, because a URL may be a secret
CREATE TABLE fetches (
    job_id   TEXT PRIMARY KEY,
    url      TEXT NOT NULL,
    etag     TEXT,
    modified TEXT
) STRICT;
CREATE TABLE deliveries (
    id           TEXT PRIMARY KEY,
    owner        TEXT NOT NULL,
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
CREATE TRIGGER callback_is_due_at_the_end AFTER UPDATE OF state ON jobs
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
_MAX_SPARE_CONNECTIONS = 1  # a job usually begins after another has ended


class Database:
    """The database of one data folder. Safe to use from many threads and processes at once."""

    def __init__(self, path: Path, wakeups: Wakeups | None = None) -> None:
        """Open nothing yet. `wakeups` is None for programs that only read."""
        self._path = path
        self._wakeups = wakeups
        self._local = threading.local()
        self._spare: list[sqlite3.Connection] = []  # released by their threads

    def create(self) -> None:
        """Create the schema if the database is new. RuntimeError if another release wrote it."""
        with self.transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == SCHEMA_VERSION:
                return  # nothing is written: this must succeed on a full disk
            if version:
                raise RuntimeError(
                    f"The data folder was written by another release: its database has version {version}, "
                    f"and this release reads only version {SCHEMA_VERSION}."
                )
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def read(self, query: str, values: Values = ()) -> sqlite3.Cursor:
        """Run a SELECT on the calling thread's connection."""
        return self._connect().execute(query, values)

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection
        try:
            connection = self._spare.pop()
        except IndexError:
            connection = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL: a commit is on disk when it returns, so that an accepted job survives a power failure.
            connection.execute("PRAGMA synchronous = FULL")
        self._local.connection = connection
        return connection

    def release(self) -> None:
        """Let other threads use the calling thread's connection: a new one costs a sync of the folder."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            self._spare.append(connection)
        while len(self._spare) > _MAX_SPARE_CONNECTIONS:
            self._spare.pop().close()

    def close(self) -> None:
        """Close the calling thread's connection, if it has one, and those that threads have released."""
        self.release()
        while self._spare:
            self._spare.pop().close()

    @contextmanager
    def transaction(self, *woken: Program, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction; wake the programs `woken` if it changed anything.

        A change that is not `durable` is visible at once, but a power failure may undo it until the next
        durable one.
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
            self.wake(*woken)

    def wake(self, *programs: Program) -> None:
        if self._wakeups is not None:
            self._wakeups.wake(*programs)

    def version(self) -> int:
        """Return a number that changes whenever another connection changes the database. Microseconds."""
        (version,) = self.read("PRAGMA data_version").fetchone()
        return int(version)
