"""Resumable uploads: each is a folder with a file that is as long as the upload's offset.

    uploads/<id>/about.json   what was told of the upload; replaced whole, never overwritten
    uploads/<id>/video        its bytes. The size is the offset: there is no other record of it
    uploads/<id>/unchecked    while bytes with a checksum come in: the offset to go back to
    uploads/<id>/sha256       the digest's state so far: see running_hash.py
    uploads/boot              the start of the machine since when the files are known to be whole

Whoever writes to an upload, uses or removes it holds the lock of its folder; who comes later has the one
before stop (`app.storage.takeover`). An upload that was used keeps its folder for a while, without the bytes,
so that a client that missed the answer learns what became of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import orjson

from app.errors import ChecksumMismatch, TooManyUploads, UploadGone, UploadLocked, UploadNotFound
from app.failpoints import fail_point
from app.storage.allocation import allocate, bytes_before_hole
from app.storage.checksum import Checksum
from app.storage.data_folder import JOB_ID, DataFolder, new_job_id
from app.storage.durable import atomic_write, fsync_folder
from app.storage.running_hash import RunningHash, running_hash
from app.storage.space import SpaceLedger
from app.storage.spool import remove_unowned
from app.storage.takeover import BellWatcher, take_folder
from app.storage.upload_writer import SYNC_BYTES, UploadWriter

HOLD_SECONDS = 10.0  # that who has to stop is given to make its bytes durable
_LEFTOVER_SECONDS = 60.0  # a folder without a record is given to get one
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class About:
    """What was told of an upload."""

    length_bytes: int | None  # None: not told yet
    metadata: str = ""  # Upload-Metadata as received
    concat: str = ""  # Upload-Concat as received
    parts: tuple[str, ...] = ()  # ids of the uploads that this one is joined from
    job_id: str | None = None  # the job that its bytes went into
    final_id: str | None = None  # the upload that its bytes went into


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """How an upload stands."""

    id: str
    about: About
    offset_bytes: int
    is_spent: bool  # its bytes went elsewhere
    expires_at: float  # Unix seconds

    @property
    def is_whole(self) -> bool:
        return self.offset_bytes == self.about.length_bytes


@dataclass(frozen=True, slots=True)
class UploadLimits:
    keep_seconds: float  # an upload is kept so long after its last byte
    max_open: int  # uploads at a time that are not used yet


class Uploads:
    """The resumable uploads of one data folder. Safe to use from many threads and processes at once."""

    def __init__(
        self,
        folder: DataFolder,
        space: SpaceLedger,
        limits: UploadLimits,
        *,
        clock: Callable[[], float] = time.time,
        boot_id: Callable[[], str] = _BOOT_ID.read_text,
    ) -> None:
        self._folder = folder
        self._space = space
        self._limits = limits
        self._clock = clock
        self._boot_id = boot_id
        self._watcher = BellWatcher()

    # ---- a new one

    def check_count(self) -> None:
        """Raise TooManyUploads if there may be no more."""
        limit = self._limits.max_open
        if sum((folder / "video").exists() for folder in self._folders()) >= limit:
            raise TooManyUploads(f"{limit} uploads are open.", {"limit": limit, "retry_after_seconds": 60})

    def create(self, about: About, *, key: str) -> str:
        """Make an empty upload and return its id; it, and room for its length, are there after a power cut.

        `key` names the promise of disk space made at admission, which ends with this. Raises TooManyUploads,
        InsufficientStorage.
        """
        self.check_count()
        self._space.release(key)
        upload_id = new_job_id()
        folder = self._folder.upload(upload_id)
        folder.mkdir(mode=0o700)
        descriptor = take_folder(folder, folder / "about.json", seconds=HOLD_SECONDS)
        try:
            held = HeldUpload(upload_id, folder, self._space, self._watcher, self._limits.keep_seconds)
            held.begin(about)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)
        fsync_folder(self._folder.uploads)
        fail_point("upload_created")
        return upload_id

    @contextmanager
    def hold_new(self, upload_id: str, about: About) -> Iterator[HeldUpload]:
        """Yield the upload `upload_id`, which is made if it is not there: see `hold`."""
        folder = self._folder.upload(upload_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        with self._locked(upload_id) as held:
            if not (folder / "about.json").exists():
                with self._space.disk_full_told(0):
                    _write_about(folder, about)
                fsync_folder(self._folder.uploads)
            yield held

    # ---- one that is there

    def look(self, upload_id: str) -> UploadFacts:
        """Return how the upload stands, while somebody may be writing to it.

        Raises UploadNotFound, UploadGone if it has expired.
        """
        return self._living(_read_facts(self._path(upload_id), self._limits.keep_seconds))

    @contextmanager
    def hold(self, upload_id: str) -> Iterator[HeldUpload]:
        """Yield the upload for this caller alone, until the block ends; whoever else had it has stopped.

        Raises UploadNotFound, UploadGone if it has expired, UploadLocked if the other one did not stop.
        """
        with self._locked(upload_id) as held:
            self._living(held.facts())
            yield held

    @contextmanager
    def _locked(self, upload_id: str, *, seconds: float = HOLD_SECONDS) -> Iterator[HeldUpload]:
        folder = self._path(upload_id)
        try:
            descriptor = take_folder(folder, folder / "about.json", seconds=seconds)
        except FileNotFoundError as error:
            raise _not_found(upload_id) from error
        except TimeoutError as error:
            raise UploadLocked(
                "Another request writes to the upload and has not stopped yet.", {"retry_after_seconds": 5}
            ) from error
        try:
            held = HeldUpload(upload_id, folder, self._space, self._watcher, self._limits.keep_seconds)
            held.undo_unchecked()
            yield held
        finally:
            os.close(descriptor)

    def _living(self, facts: UploadFacts) -> UploadFacts:
        if facts.expires_at <= self._clock():
            raise UploadGone("The upload has expired; start again.")
        return facts

    def _path(self, upload_id: str) -> Path:
        try:
            return self._folder.upload(upload_id)
        except ValueError as error:
            raise _not_found(upload_id) from error

    def _folders(self) -> Iterator[Path]:
        return (folder for folder in self._folder.uploads.iterdir() if JOB_ID.fullmatch(folder.name))

    # ---- clearing up

    def remove_expired(self) -> int:
        """Remove the uploads whose time is over, and what crashes left; return how many.

        None that is in use is touched.
        """
        return sum(
            remove_unowned(folder, is_leftover=lambda: self._is_over(folder))  # noqa: B023 - asked at once
            for folder in [*self._folders()]
            if self._is_over(folder)
        )

    def _is_over(self, folder: Path) -> bool:
        try:
            return _read_facts(folder, self._limits.keep_seconds).expires_at <= self._clock()
        except UploadNotFound:
            with suppress(FileNotFoundError):
                return folder.stat().st_mtime + _LEFTOVER_SECONDS <= self._clock()
            return False

    def recover(self) -> int:
        """Make every upload's offset true again: at the start of the HTTP side, before it serves.

        After a start of the machine a file may count bytes that never reached the disk: it is cut before
        them. Promises of disk space are made anew. What another process is at work on is left alone. Return
        how many uploads were cut.
        """
        record, boot_id = self._folder.uploads / "boot", self._boot_id().strip()
        is_same_boot = record.exists() and record.read_text() == boot_id
        cut = 0
        for folder in [*self._folders()]:
            with suppress(UploadNotFound, UploadLocked), self._locked(folder.name, seconds=0) as held:
                cut += 0 if is_same_boot else held.cut_at_hole()
                held.renew_promise()
        if not is_same_boot:
            with atomic_write(record) as file:
                file.write(boot_id.encode())
        return cut


class HeldUpload:
    """An upload while its lock is held. Made by `Uploads.hold`."""

    def __init__(
        self, upload_id: str, folder: Path, space: SpaceLedger, watcher: BellWatcher, keep_seconds: float
    ) -> None:
        self.id = upload_id
        self.video = folder / "video"
        self._folder = folder
        self._space = space
        self._watcher = watcher
        self._keep_seconds = keep_seconds

    def facts(self) -> UploadFacts:
        """How the upload stands. What an earlier writer that was killed has left may not be durable yet."""
        return _read_facts(self._folder, self._keep_seconds)

    def settle(self) -> UploadFacts:
        """How the upload stands, when all that counts is durable."""
        with (
            suppress(FileNotFoundError),
            self._space.disk_full_told(0),
            _opened(self.video, os.O_RDONLY) as fd,
        ):
            os.fsync(fd)
        return self.facts()

    def begin(self, about: About) -> None:
        """Make the empty file and take the room for its length. Raises InsufficientStorage."""
        length = about.length_bytes or 0
        self._space.reserve(self._promise, length, seconds=self._keep_seconds)
        with (
            self._space.disk_full_told(length),
            _opened(self.video, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor,
        ):
            is_allocated = allocate(descriptor, length)
            os.fsync(descriptor)
            _write_about(self._folder, about)
        if is_allocated:
            self._space.release(self._promise)

    def tell(self, **changes: object) -> None:
        """Record what is now known of the upload, durably: members of `About`."""
        about = replace(self.facts().about, **changes)  # type: ignore[arg-type]
        with self._space.disk_full_told(0):
            _write_about(self._folder, about)

    def take_length(self, length_bytes: int) -> None:
        """Record the length of an upload that had none, and take the room for it.

        Raises InsufficientStorage.
        """
        missing = length_bytes - self.facts().offset_bytes
        self._space.reserve(self._promise, missing, seconds=self._keep_seconds)
        with self._space.disk_full_told(missing), _opened(self.video, os.O_WRONLY) as descriptor:
            is_allocated = allocate(descriptor, length_bytes)
        if is_allocated:
            self._space.release(self._promise)
        self.tell(length_bytes=length_bytes)

    def append(
        self, pieces: Iterable[bytes], checksum: Checksum | None, *, on_ring: Callable[[], None]
    ) -> None:
        """Append the bytes, which may end early: those that came are durable, and count, even if this raises.

        With a `checksum` they count all together or not at all. `on_ring` is called, in another thread, when
        somebody else wants the upload: it should make `pieces` end. Raises what `pieces` raises,
        ChecksumMismatch, InsufficientStorage.
        """
        start = self.settle().offset_bytes
        if checksum is not None:
            self._note_unchecked(start)
        running = running_hash(self._hash_record, start)
        with self._watcher.watch(self._folder / "about.json", on_ring):
            if checksum is None:
                self._write(pieces, start, running, may_save=True)
            else:
                self._write_checked(pieces, start, checksum, running)

    def _write(
        self,
        pieces: Iterable[bytes],
        start: int,
        running: RunningHash | None,
        *,
        may_save: bool,
    ) -> None:
        """`may_save`: what is durable will not be taken back, so the digest's state may be kept."""
        needed = self.facts().about.length_bytes or start + SYNC_BYTES
        with self._space.disk_full_told(needed), _opened(self.video, _APPEND) as descriptor:
            promise = self._on_sync(descriptor)

            def on_sync(size_bytes: int) -> None:
                promise(size_bytes)
                if may_save and running is not None and running.hashed_bytes <= size_bytes:
                    _save(running)

            if running is not None:
                running.read_to(descriptor, start)
            writer = UploadWriter(descriptor, start, on_sync)
            try:
                for piece in pieces:
                    writer.write(piece)
                    if running is not None:
                        running.take(piece)
            finally:
                fail_point("chunk_received")
                writer.finish()
                fail_point("chunk_durable")

    def _write_checked(
        self, pieces: Iterable[bytes], start: int, checksum: Checksum, running: RunningHash | None
    ) -> None:
        digest = checksum.new_hash()
        try:
            self._write(_hashed(pieces, digest), start, running, may_save=False)
        except BaseException:
            self.undo_unchecked()
            raise
        if digest.digest() != checksum.digest:
            self.undo_unchecked()
            raise ChecksumMismatch(
                f"The body's {checksum.algorithm} is another one; none of it was kept.",
                {"offset_bytes": start},
            )
        self._forget_unchecked()
        if running is not None:
            _save(running)

    def sha256(self) -> str | None:
        """Hex digest of all bytes; None if it was not kept up with, and there are many."""
        size = self.facts().offset_bytes
        running = running_hash(self._hash_record, size)
        if running is None:
            return None
        with _opened(self.video, os.O_RDONLY) as descriptor:
            running.read_to(descriptor, size)
        return running.hexdigest() if running.hashed_bytes == size else None

    @property
    def _hash_record(self) -> Path:
        return self._folder / "sha256"

    def _note_unchecked(self, start: int) -> None:
        with atomic_write(self._folder / "unchecked") as file:
            file.write(str(start).encode())

    def _forget_unchecked(self) -> None:
        (self._folder / "unchecked").unlink()
        fsync_folder(self._folder)

    def undo_unchecked(self) -> None:
        """Drop bytes whose checksum was never compared, if there are such."""
        with suppress(FileNotFoundError):
            self._cut(int((self._folder / "unchecked").read_text()))
            self._forget_unchecked()

    def cut_at_hole(self) -> bool:
        """Drop what lies behind bytes that were never written; True if there was any."""
        with suppress(FileNotFoundError):
            with _opened(self.video, os.O_RDONLY) as descriptor:
                size, end = os.fstat(descriptor).st_size, bytes_before_hole(descriptor)
            if end < size:
                self._cut(end)
            return end < size
        return False

    def _cut(self, size_bytes: int) -> None:
        """Shorten the file; the room for the rest goes with it and is taken anew, if it is still there."""
        with _opened(self.video, os.O_WRONLY) as descriptor:
            if os.fstat(descriptor).st_size > size_bytes:
                os.ftruncate(descriptor, size_bytes)
                with suppress(OSError):
                    allocate(descriptor, self.facts().about.length_bytes or 0)
            os.fsync(descriptor)

    def spend(self, *, job_id: str | None = None, final_id: str | None = None) -> None:
        """Record what the bytes have become, and drop this name of theirs."""
        self.tell(job_id=job_id, final_id=final_id)
        fail_point("upload_spent")
        self.drop_bytes()

    def drop_bytes(self) -> None:
        self.video.unlink(missing_ok=True)
        self._space.release(self._promise)

    def remove(self) -> None:
        """Remove the upload with all that is in it."""
        shutil.rmtree(self._folder)
        fsync_folder(self._folder.parent)
        self._space.release(self._promise)

    # ---- the promise of disk space, where the file system cannot take it ahead

    @property
    def _promise(self) -> str:
        return f"upload {self.id}"

    def renew_promise(self) -> None:
        """Promise the room that is still to come, unless the file has it already."""
        with suppress(FileNotFoundError), _opened(self.video, os.O_RDONLY) as descriptor:
            self._on_sync(descriptor)(os.fstat(descriptor).st_size)

    def _on_sync(self, descriptor: int) -> Callable[[int], None]:
        length = self.facts().about.length_bytes
        has_room = length is not None and os.fstat(descriptor).st_blocks * 512 >= length

        def promise(size_bytes: int) -> None:
            coming = SYNC_BYTES if length is None else length - size_bytes
            if coming > 0:
                self._space.reserve(self._promise, coming, seconds=self._keep_seconds)
            else:
                self._space.release(self._promise)

        return (lambda _: None) if has_room else promise


def _hashed(pieces: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _save(running: RunningHash) -> None:
    """An upload goes on where there is no room for this: without its digest, at worst."""
    with suppress(OSError):
        running.save()


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_about(folder: Path, about: About) -> None:
    with atomic_write(folder / "about.json") as file:
        file.write(orjson.dumps(about))


def _read_facts(folder: Path, keep_seconds: float) -> UploadFacts:
    """The video may change, or go, while this looks: what it says held at one moment."""
    try:
        record, told_at = (folder / "about.json").read_bytes(), (folder / "about.json").stat().st_mtime
    except FileNotFoundError as error:
        raise _not_found(folder.name) from error
    members = orjson.loads(record)
    told = {field.name: members[field.name] for field in fields(About) if field.name in members}
    about = About(**(told | {"parts": tuple(members["parts"])}))  # another version may have told more
    size, written_at = 0, 0.0
    with suppress(FileNotFoundError):  # used, or not joined yet
        video = (folder / "video").stat()
        size, written_at = min(video.st_size, _unchecked_from(folder, video.st_size)), video.st_mtime
    is_spent = (about.job_id or about.final_id) is not None
    offset = about.length_bytes or 0 if is_spent else size
    return UploadFacts(folder.name, about, offset, is_spent, max(told_at, written_at) + keep_seconds)


def _unchecked_from(folder: Path, size_bytes: int) -> int:
    with suppress(FileNotFoundError):
        return int((folder / "unchecked").read_text())
    return size_bytes


def _not_found(upload_id: str) -> UploadNotFound:
    return UploadNotFound(f"There is no upload {upload_id[:40]!r}.")
