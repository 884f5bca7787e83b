"""A video on its way in that comes in several goes: a file that grows, and the digest of what it holds.

The file is cut back to what is known to be durable when it is opened again, so that neither a kill nor a
power cut leaves bytes in it that nobody wrote.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import InsufficientStorage
from app.failpoints import fail_point
from app.storage.durable import fsync_folder
from app.storage.space import SpaceLedger, is_disk_full

SYNC_BYTES = 64 * 1024 * 1024  # promised ahead where the length is not known
_PROMISE_SECONDS = 900.0
_READ_BYTES = 1024 * 1024


@dataclass(slots=True)
class PartialVideo:
    """A file that is being filled; see `open_partial`."""

    path: Path
    key: str  # of its promise in the SpaceLedger
    _descriptor: int
    _space: SpaceLedger
    size_bytes: int = 0
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        """Hex digest of what it holds."""
        return self._hash.hexdigest()

    def reserve(self, expected_bytes: int | None) -> None:
        """Promise it the room for what is still to come. Raises InsufficientStorage."""
        coming = SYNC_BYTES if expected_bytes is None else max(0, expected_bytes - self.size_bytes)
        self._space.reserve(self.key, coming, seconds=_PROMISE_SECONDS)

    def write(self, data: bytes) -> None:
        """Append `data`. Raises InsufficientStorage; then a part of it may be in the file, and counts."""
        rest = memoryview(data)
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except OSError as error:
                if is_disk_full(error):
                    raise self._no_room(len(rest)) from error
                raise
            self._hash.update(rest[:written])
            self.size_bytes += written
            rest = rest[written:]

    def sync(self) -> None:
        """Make all of it durable. Raises InsufficientStorage."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            if is_disk_full(error):
                raise self._no_room(0) from error
            raise
        fail_point("fetch_synced")

    def start_over(self) -> None:
        """Drop what there is."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size_bytes, self._hash = 0, hashlib.sha256()

    def publish(self, video: Path) -> None:
        """Make it the job's video, whole and durable."""
        os.fsync(self._descriptor)
        fail_point("fetch_durable")
        self.path.rename(video)
        fail_point("fetch_renamed")
        fsync_folder(video.parent)

    def _no_room(self, needed_bytes: int) -> InsufficientStorage:
        available = max(self._space.available_bytes(), 0)
        return InsufficientStorage(
            "The disk is full.", {"needed_bytes": needed_bytes, "available_bytes": available}
        )


@contextmanager
def open_partial(
    path: Path, *, video: Path, durable_bytes: int, key: str, space: SpaceLedger
) -> Iterator[PartialVideo]:
    """Yield the file at `path`, cut back to `durable_bytes`, or to what there is of them; empty if new.

    One that was published as `video` and not yet recorded as such is taken back. Raises FileNotFoundError if
    its folder is gone.
    """
    if video.exists():
        video.rename(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, min(durable_bytes, os.fstat(descriptor).st_size))
        partial = PartialVideo(path, key, descriptor, space)
        while block := os.read(descriptor, _READ_BYTES):  # also moves to the end
            partial._hash.update(block)  # noqa: SLF001 - it is being made
            partial.size_bytes += len(block)
        yield partial
    finally:
        os.close(descriptor)
        space.release(key)
