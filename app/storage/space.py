"""Promises of disk space, so that no two uploads are promised the same bytes.

A promise bridges the time between an upload's admission and the moment its space is taken on disk. It is
kept in a small SQLite file which all HTTP workers share, and which may be lost: promises end by themselves.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from app.errors import InsufficientStorage


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class SpaceLedger:
    """The promises of one file system. Safe to use from many threads and processes at once."""

    def __init__(
        self,
        database: Path,
        folder: Path,
        *,
        min_free_bytes: int,
        measure: Callable[[Path], int] = free_bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._measure = measure
        self._clock = clock

    def available_bytes(self) -> int:
        """Bytes that may still be promised; negative when the disk is fuller than it should be."""
        with self._transaction() as connection:
            return self._available(connection, but_for="")

    def reserve(self, key: str, size_bytes: int, *, seconds: float) -> None:
        """Promise `size_bytes` to `key` for `seconds`, in place of what it was promised before.

        Raises InsufficientStorage if the disk would be left with less than its minimum.
        """
        with self._transaction() as connection:
            available = self._available(connection, but_for=key)
            if size_bytes > available:
                raise InsufficientStorage(
                    f"There is no room for {size_bytes} bytes; {max(available, 0)} are available.",
                    {"needed_bytes": size_bytes, "available_bytes": max(available, 0)},
                )
            connection.execute(
                "INSERT OR REPLACE INTO promises VALUES (?, ?, ?)", (key, size_bytes, self._clock() + seconds)
            )

    def release(self, key: str) -> None:
        """Take back what was promised to `key`, if anything was."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM promises WHERE key = ?", (key,))

    def _available(self, connection: sqlite3.Connection, *, but_for: str) -> int:
        connection.execute("DELETE FROM promises WHERE expires_at < ?", (self._clock(),))
        (promised,) = connection.execute(
            "SELECT coalesce(sum(size_bytes), 0) FROM promises WHERE key <> ?", (but_for,)
        ).fetchone()
        return self._measure(self._folder) - int(promised) - self._min_free_bytes

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS promises "
                "(key TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, expires_at REAL NOT NULL) STRICT"
            )
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
