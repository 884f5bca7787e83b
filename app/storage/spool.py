"""The spool: uploads on their way to disk, each byte written once and hashed as it passes.

An upload is in ``incoming/<job id>/`` until it is whole and durable; then its folder becomes the job's by one
rename. The process that receives an upload holds the lock of its folder (`app.storage.locks`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.failpoints import fail_point
from app.storage.bodies import SpooledBody
from app.storage.data_folder import DataFolder
from app.storage.descriptors import (
    allocate,
    opened,
    start_write_back,
    wait_for_write_back,
    write_whole,
)
from app.storage.durable import fsync_folder
from app.storage.hashing import ParallelHash
from app.storage.locks import new_folder, remove_unheld
from app.storage.space import SpaceLedger

SYNC_BYTES = 64 * 1024 * 1024  # an upload leaves twice as many dirty pages at most; smaller steps cost speed
_PROMISE_SECONDS = 900.0  # an upload renews its promise with every SYNC_BYTES


@dataclass(slots=True)
class Upload:
    """An upload that is arriving. Its bytes are written as they come; `finish` makes them durable."""

    job_id: str
    key: str  # of its promise in the SpaceLedger
    expected_bytes: int | None  # None: unknown
    _descriptor: int
    _space: SpaceLedger
    size_bytes: int = 0
    _allocated: bool = False
    _synced_bytes: int = 0
    _hash: ParallelHash = field(default_factory=ParallelHash)

    @property
    def sha256(self) -> str:
        """Hex digest of what has been written so far."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Release everything but the file."""
        self._hash.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`, which must not change afterwards. Raises InsufficientStorage."""
        self._hash.update(data)
        with self._disk_full_reported():
            write_whole(self._descriptor, data)
        self.size_bytes += len(data)
        if self.size_bytes - self._synced_bytes < SYNC_BYTES:
            return
        # Bound the dirty pages. Where no space is allocated, only bytes on disk count.
        if self._allocated:
            wait_for_write_back(self._descriptor, self._synced_bytes)
            start_write_back(self._descriptor, self._synced_bytes, self.size_bytes - self._synced_bytes)
        else:
            with self._disk_full_reported():
                os.fdatasync(self._descriptor)
            self._promise()
        self._synced_bytes = self.size_bytes

    def finish(self) -> None:
        """Make the bytes durable and free the space that was allocated beyond them."""
        fail_point("upload_received")
        with self._disk_full_reported():
            if self._allocated and self.size_bytes != self.expected_bytes:
                os.ftruncate(self._descriptor, self.size_bytes)
            os.fsync(self._descriptor)

    def reserve(self) -> None:
        """Allocate the disk space of an upload of known length, which replaces the promise for it.

        If the file system cannot, or the length is unknown, the promise is renewed instead.
        Raises InsufficientStorage.
        """
        self._promise()
        if self.expected_bytes is not None:
            with self._disk_full_reported():
                self._allocated = allocate(self._descriptor, self.expected_bytes)
        if self._allocated:
            self._space.release(self.key)

    def _promise(self) -> None:
        coming = SYNC_BYTES if self.expected_bytes is None else max(0, self.expected_bytes - self.size_bytes)
        self._space.reserve(self.key, coming, seconds=_PROMISE_SECONDS)

    def _disk_full_reported(self) -> AbstractContextManager[None]:
        return self._space.disk_full_reported(max(self.expected_bytes or 0, self.size_bytes + 1))


@dataclass(frozen=True, slots=True)
class TakenBody:
    """A body that nginx wrote, moved into its upload's folder."""

    job_id: str
    body: SpooledBody

    @property
    def size_bytes(self) -> int:
        return self.body.size_bytes

    @property
    def sha256(self) -> str:
        return self.body.sha256

    def finish(self) -> None:
        """Make the bytes durable. Raises OSError."""
        fail_point("body_received")
        os.fsync(self.body.descriptor)


ReceivedUpload = Upload | TakenBody  # whole, in its folder in incoming/: `app.jobs.intake` makes a job of it


class Spool:
    """Where uploads arrive in one data folder. Safe to use from many threads and processes at once."""

    def __init__(self, folder: DataFolder, space: SpaceLedger) -> None:
        self._folder = folder
        self._space = space

    @contextmanager
    def _arriving(self, job_id: str) -> Iterator[Path]:
        """Yield a new folder, locked until the block ends. Unless the block renames it, it is removed."""
        folder = self._folder.incoming / job_id
        with new_folder(folder):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def receive(self, job_id: str, *, key: str, expected_bytes: int | None) -> Iterator[Upload]:
        """Yield an empty upload. Unless the block publishes it, it is removed at the block's end.

        `key` names the promise of disk space made at admission. `expected_bytes` may be a little too
        large (a multipart envelope) but not too small. Raises InsufficientStorage.
        """
        with self._arriving(job_id) as folder:
            try:
                with (
                    opened(folder / "video", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor,
                    closing(Upload(job_id, key, expected_bytes, descriptor, self._space)) as upload,
                ):
                    upload.reserve()
                    yield upload
            finally:
                self._space.release(key)

    @contextmanager
    def take(self, job_id: str, *, key: str, body: SpooledBody) -> Iterator[TakenBody]:
        """Yield an upload whose bytes nginx has written. Unless the block publishes it, it is removed.

        Raises IncompleteBody if nginx has removed the file.
        """
        with self._arriving(job_id) as folder:
            self._space.release(key)  # its bytes are on disk, and soon elsewhere than the promise says
            body.move_to(folder / "video")
            fail_point("body_moved")
            start_write_back(body.descriptor)  # so that a later fsync has less to wait for
            yield TakenBody(job_id, body)

    def publish(self, upload: ReceivedUpload) -> None:
        """Make a finished upload the video of its job, durably. The job has no record yet."""
        arriving, job_folder = self._folder.incoming / upload.job_id, self._folder.job(upload.job_id)
        fsync_folder(arriving)
        fail_point("upload_durable")
        arriving.rename(job_folder)
        fail_point("upload_renamed")
        fsync_folder(self._folder.jobs)

    @contextmanager
    def empty_job(self, job_id: str) -> Iterator[None]:
        """Create the folder of a job whose video comes from elsewhere, durably; hold it until the block ends.

        The block must write the job's record: afterwards a folder without one is a leftover.
        """
        with self._arriving(job_id) as folder:
            folder.rename(self._folder.job(job_id))
            fsync_folder(self._folder.jobs)
            yield

    def remove_leftovers(self) -> int:
        """Remove uploads whose receiver died, not those that are arriving; return how many."""
        return sum(remove_unheld(folder) for folder in self._folder.incoming.iterdir() if folder.is_dir())
