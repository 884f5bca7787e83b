"""Promises of disk space, so that no two uploads are promised the same bytes.

A promise covers the time between an upload's admission and the allocation of its space on disk. Promises are
in a small SQLite file that all HTTP workers share. It may be lost: promises expire by themselves.

The space of a body that nginx writes is never allocated, and nginx does not report when its client goes away.
Such a promise therefore names the folder in which the body's file grows: it lasts while there is a file,
less what has been written. A folder may have more promises than files, some of them from clients that have
gone; then the largest ones count, so that too much is kept free rather than too little.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from app.errors import InsufficientStorage

# A database in WAL mode also needs room for its log and, first of all, for its index in shared memory.
_DATABASE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user may still write to the file system of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def is_disk_full(error: BaseException) -> bool:
    """Return whether `error` means that a file, or a database, could not grow."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _DATABASE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Ballast:
    """Disk space held in reserve, so that even on a full disk the state of jobs can be recorded."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def take(self) -> bool:
        """Reserve the space; false if the disk has not twice as much."""
        if self._path.exists():
            return True
        if free_bytes(self._path.parent) < 2 * self._size_bytes:
            return False
        with self._path.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, self._size_bytes)
            except OSError as error:
                self._path.unlink()
                if not is_disk_full(error):
                    raise
                return False
        return True

    def give(self) -> bool:
        """Free the space; false if none was reserved."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SpaceLedger:
    """The promises of one file system. Safe to use from many threads and processes at once."""

    database: Path
    folder: Path
    min_free_bytes: int
    body_sizes: Callable[[str], Sequence[int]] = lambda _folder: ()
    measure: Callable[[Path], int] = free_bytes
    clock: Callable[[], float] = time.time

    def available_bytes(self) -> int:
        """Return how many bytes may still be promised; negative if the disk is fuller than it should be."""
        with self._transaction() as connection:
            return self._available(connection, but_for="")

    def reserve(self, key: str, size_bytes: int, *, seconds: float, body_folder: str = "") -> None:
        """Promise `size_bytes` to `key` for `seconds`, instead of what it was promised before.

        With a `body_folder` the promise also lasts while a file in that folder may be the body's.
        Raises InsufficientStorage if less than the minimum would be left.
        """
        with self.disk_full_reported(size_bytes), self._transaction() as connection:
            available = self._available(connection, but_for=key)
            if size_bytes > available:
                raise InsufficientStorage(
                    f"There is no room for {size_bytes} bytes; {max(available, 0)} are available.",
                    {"needed_bytes": size_bytes, "available_bytes": max(available, 0)},
                )
            connection.execute(
                "INSERT OR REPLACE INTO space_promises VALUES (?, ?, ?, ?)",
                (key, size_bytes, self.clock() + seconds, body_folder),
            )

    @contextmanager
    def disk_full_reported(self, needed_bytes: int) -> Iterator[None]:
        """Raise InsufficientStorage, with what is available, if the block finds the disk full."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if not is_disk_full(error):
                raise
            available = 0
            with suppress(sqlite3.Error):  # a promise needs room too
                available = max(self.available_bytes(), 0)
            raise InsufficientStorage(
                "The disk is full.", {"needed_bytes": needed_bytes, "available_bytes": available}
            ) from error

    def body_folders(self) -> list[str]:
        """Return the names of the folders in which bodies arrive, or soon will."""
        with closing(sqlite3.connect(self.database, timeout=30, isolation_level=None)) as connection:
            try:
                rows = connection.execute(
                    "SELECT DISTINCT body_folder FROM space_promises WHERE body_folder <> ''"
                )
                return [name for (name,) in rows]
            except sqlite3.OperationalError:
                return []  # nothing was ever promised

    def release(self, key: str) -> None:
        """Withdraw what was promised to `key`, if anything was."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM space_promises WHERE key = ?", (key,))

    def _available(self, connection: sqlite3.Connection, *, but_for: str) -> int:
        """Return how many bytes may be promised to `but_for`; forget the promises that no longer count."""
        now, coming = self.clock(), 0
        connection.execute("DELETE FROM space_promises WHERE expires_at < ? AND body_folder = ''", (now,))
        rows = connection.execute(
            "SELECT body_folder, key, size_bytes, expires_at < ? FROM space_promises WHERE key <> ? "
            "ORDER BY body_folder, size_bytes DESC",
            (now, but_for),
        ).fetchall()
        for body_folder, group in groupby(rows, key=itemgetter(0)):
            sizes = sorted(self.body_sizes(body_folder)) if body_folder else []
            promises = [*group]
            young = [size for _folder, _key, size, is_old in promises if not is_old]
            old = [(key, size) for _folder, key, size, is_old in promises if is_old]
            for key, _size in old[len(sizes) :]:  # no file is left that it could be for
                connection.execute("DELETE FROM space_promises WHERE key = ?", (key,))
            held = [*young, *(size for _key, size in old[: len(sizes)])]
            coming += max(0, sum(held) - sum(sizes[: len(held)]))
        # What is written meanwhile must not count as free: so the disk is measured last.
        return self.measure(self.folder) - coming - self.min_free_bytes

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.database, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS space_promises (key TEXT PRIMARY KEY, "
                "size_bytes INTEGER NOT NULL, expires_at REAL NOT NULL, body_folder TEXT NOT NULL) STRICT"
            )
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk may have ended it
                    connection.execute("ROLLBACK")
                raise
