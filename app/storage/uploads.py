"""Resumable uploads: each is a folder with a file that is as long as the upload's offset.

    <root>/<id>/about.json   what is known of the upload; replaced whole, never overwritten
    <root>/<id>/video        its bytes. The size is the offset: there is no other record of it
    <root>/<id>/unchecked    while bytes with a checksum arrive: the offset to return to
    <root>/<id>/sha256       the state of its digest: see hashing.py
    <root>/boot              the start of the machine since which the files are known to be whole

There are two roots: uploads/ for clients, and fetches/ for videos that the courier fetches. A process that
writes to an upload, uses or removes it holds the lock of its folder; a later one asks it to stop
(`app.storage.locks`). A used upload keeps its folder for a while, without the bytes, so that a client that
missed the answer can find out what happened to it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import orjson

from app.errors import ChecksumMismatch, TooManyUploads, UploadGone, UploadLocked, UploadNotFound
from app.failpoints import fail_point
from app.storage.data_folder import JOB_ID, new_job_id
from app.storage.descriptors import allocate, bytes_before_hole, opened
from app.storage.durable import atomic_write, fsync_folder
from app.storage.hashing import Checksum, RunningHash, running_hash
from app.storage.locks import TakeoverWatcher, held_folder, remove_unheld
from app.storage.space import SpaceLedger
from app.storage.upload_writer import SYNC_BYTES, UploadWriter

HOLD_SECONDS = 10.0  # for a request that has to stop to make its bytes durable
_LEFTOVER_SECONDS = 60.0  # before a folder without a record is removed
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_APPEND = os.O_RDWR | os.O_APPEND


@dataclass(frozen=True, slots=True)
class About:
    """What is known of an upload."""

    owner: str
    length_bytes: int | None  # None: unknown yet
    is_part: bool = False  # of an upload that it is to be joined into
    parts: tuple[str, ...] = ()  # ids of the uploads that this one is joined from
    notes: Mapping[str, str] = field(default_factory=dict)  # of its protocol, kept verbatim
    job_id: str | None = None  # the job that its bytes went into
    final_id: str | None = None  # the upload that its bytes went into


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """The state of an upload."""

    id: str
    about: About
    offset_bytes: int
    is_spent: bool  # its bytes have become a job's or another upload's
    expires_at: float  # Unix seconds

    @property
    def is_whole(self) -> bool:
        return self.offset_bytes == self.about.length_bytes


@dataclass(frozen=True, slots=True)
class UploadLimits:
    keep_seconds: float  # how long an upload is kept after its last byte
    max_open: int = 2**31  # of one owner, that have not been used yet


@dataclass(frozen=True, slots=True)
class Uploads:
    """The resumable uploads below `root`. Safe to use from many threads and processes at once."""

    root: Path
    space: SpaceLedger
    limits: UploadLimits
    clock: Callable[[], float] = time.time
    boot_id: Callable[[], str] = _BOOT_ID.read_text
    watcher: TakeoverWatcher = field(default_factory=TakeoverWatcher)

    # ---- a new one

    def check_count(self, *, owner: str) -> None:
        """Raise TooManyUploads if the owner may have no more."""
        limit = self.limits.max_open
        is_open = [folder for folder in self.folders() if (folder / "video").exists()]
        if len(is_open) >= limit and sum(_is_of(folder, owner) for folder in is_open) >= limit:
            raise TooManyUploads(f"{limit} uploads are open.", {"limit": limit, "retry_after_seconds": 60})

    def create(self, about: About, *, key: str) -> str:
        """Create an empty upload and return its id. It survives a power failure, as does its disk space.

        `key` names the promise of disk space made at admission; this replaces it. Raises TooManyUploads,
        InsufficientStorage.
        """
        self.check_count(owner=about.owner)
        self.space.release(key)
        upload_id = new_job_id()
        folder = self._path(upload_id)
        folder.mkdir(mode=0o700)
        with self._locked(upload_id) as held:
            try:
                held.begin(about)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        fsync_folder(self.root)
        fail_point("upload_created")
        return upload_id

    @contextmanager
    def hold_new(self, upload_id: str, about: About) -> Iterator[HeldUpload]:
        """Yield the upload `upload_id`, created if there is none: see `hold`."""
        folder = self._path(upload_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        with self._locked(upload_id) as held:
            if (folder / "about.json").exists():
                if held.facts().about.owner != about.owner:
                    raise _not_found(upload_id)
            else:
                with self.space.disk_full_reported(0):
                    _write_about(folder, about)
                fsync_folder(self.root)
            yield held

    # ---- one that is there

    def look(self, upload_id: str, *, owner: str) -> UploadFacts:
        """Return the state of an upload that may be written to meanwhile.

        Raises UploadNotFound, UploadGone if it has expired.
        """
        return self._living(_read_facts(self._path(upload_id), self.limits.keep_seconds), owner)

    @contextmanager
    def hold(self, upload_id: str, *, owner: str) -> Iterator[HeldUpload]:
        """Yield the upload, locked until the block ends. A request that had it has been stopped.

        Raises UploadNotFound, UploadGone if it has expired, UploadLocked if the other request did not stop.
        """
        with self._locked(upload_id) as held:
            self._living(held.facts(), owner)
            yield held

    @contextmanager
    def _locked(self, upload_id: str, *, seconds: float = HOLD_SECONDS) -> Iterator[HeldUpload]:
        folder, deadline = self._path(upload_id), time.monotonic() + seconds

        def ask_to_stop() -> None:  # see `TakeoverWatcher`
            with suppress(FileNotFoundError):
                os.utime(folder / "about.json")

        with ExitStack() as stack:
            try:
                is_held = stack.enter_context(held_folder(folder, deadline=deadline, on_retry=ask_to_stop))
            except FileNotFoundError as error:
                raise _not_found(upload_id) from error
            if not is_held:
                raise UploadLocked(
                    "Another request writes to the upload and has not stopped yet.",
                    {"retry_after_seconds": 5},
                )
            held = HeldUpload(folder, self.space, self.watcher, self.limits.keep_seconds)
            held.undo_unchecked()
            yield held

    def _living(self, facts: UploadFacts, owner: str) -> UploadFacts:
        if facts.about.owner != owner:
            raise _not_found(facts.id)
        if facts.expires_at <= self.clock():
            raise UploadGone("The upload has expired; start again.")
        return facts

    def _path(self, upload_id: str) -> Path:
        if not JOB_ID.fullmatch(upload_id):  # it may come from a URL
            raise _not_found(upload_id)
        return self.root / upload_id

    def folders(self) -> list[Path]:
        """Return the folders of all uploads. Each has its upload's id for a name."""
        return [folder for folder in self.root.iterdir() if JOB_ID.fullmatch(folder.name)]

    def remove(self, upload_id: str) -> None:
        """Remove the upload, regardless of its owner. Does nothing if there is none."""
        with suppress(UploadNotFound), self._locked(upload_id) as held:
            held.remove()

    # ---- clearing up

    def remove_expired(self) -> int:
        """Remove expired uploads and what crashes left, unless they are in use; return how many."""
        return sum(
            remove_unheld(folder, is_leftover=lambda: self._is_over(folder))  # noqa: B023 - called at once
            for folder in self.folders()
            if self._is_over(folder)
        )

    def _is_over(self, folder: Path) -> bool:
        try:
            return _read_facts(folder, self.limits.keep_seconds).expires_at <= self.clock()
        except UploadNotFound:
            with suppress(FileNotFoundError):
                return folder.stat().st_mtime + _LEFTOVER_SECONDS <= self.clock()
            return False

    def recover(self) -> int:
        """Correct the uploads' offsets when a program starts; return how many uploads were cut.

        After a power failure the size of a file may include bytes that never reached the disk: the file is
        cut before them. Promises of disk space are renewed. Uploads that another process uses are skipped.
        """
        record, boot_id = self.root / "boot", self.boot_id().strip()
        is_same_boot = record.exists() and record.read_text() == boot_id
        cut = 0
        for folder in self.folders():
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
        self, folder: Path, space: SpaceLedger, watcher: TakeoverWatcher, keep_seconds: float
    ) -> None:
        self.id = folder.name
        self.video = folder / "video"
        self._folder = folder
        self._unchecked = folder / "unchecked"
        self._hash_record = folder / "sha256"
        self._promise = f"upload {folder.name}"  # of disk space, where the file system cannot allocate it
        self._space = space
        self._watcher = watcher
        self._keep_seconds = keep_seconds

    def facts(self) -> UploadFacts:
        """Return the upload's state. Bytes left by a killed request may not be durable yet."""
        return _read_facts(self._folder, self._keep_seconds)

    def settle(self) -> UploadFacts:
        """Make all bytes durable; return the upload's state."""
        with (
            suppress(FileNotFoundError),
            self._space.disk_full_reported(0),
            opened(self.video, os.O_RDONLY) as descriptor,
        ):
            os.fsync(descriptor)
        return self.facts()

    def begin(self, about: About) -> None:
        """Create the empty file and allocate its length. Raises InsufficientStorage."""
        length = about.length_bytes or 0
        self._space.reserve(self._promise, length, seconds=self._keep_seconds)
        with (
            self._space.disk_full_reported(length),
            opened(self.video, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor,
        ):
            is_allocated = allocate(descriptor, length)
            os.fsync(descriptor)
            _write_about(self._folder, about)
        if is_allocated:
            self._space.release(self._promise)

    def record(self, **changes: object) -> None:
        """Change members of `About`, durably."""
        about = replace(self.facts().about, **changes)  # type: ignore[arg-type]
        with self._space.disk_full_reported(0):
            _write_about(self._folder, about)

    def take_length(self, length_bytes: int) -> None:
        """Record the length of an upload that had none, and allocate it. Raises InsufficientStorage."""
        missing = length_bytes - self.facts().offset_bytes
        self._space.reserve(self._promise, missing, seconds=self._keep_seconds)
        with self._space.disk_full_reported(missing), opened(self.video, os.O_WRONLY) as descriptor:
            is_allocated = allocate(descriptor, length_bytes)
        if is_allocated:
            self._space.release(self._promise)
        self.record(length_bytes=length_bytes)

    def start_over(self, length_bytes: int | None) -> None:
        """Drop all bytes, durably, and allocate the new length if it is known. Raises InsufficientStorage."""
        with self._space.disk_full_reported(length_bytes or 0):
            with opened(self.video, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                os.fsync(descriptor)
            self._hash_record.unlink(missing_ok=True)
            self.record(length_bytes=None)
        if length_bytes is not None:
            self.take_length(length_bytes)

    def link_to(self, target: Path) -> None:
        """Give the file a second name, durably: a crash then loses neither the upload nor its user."""
        target.unlink(missing_ok=True)
        os.link(self.video, target)
        fsync_folder(target.parent)

    def append(
        self,
        pieces: Iterable[bytes],
        checksum: Checksum | None = None,
        *,
        on_takeover: Callable[[], None] = lambda: None,
    ) -> None:
        """Append the bytes. They may end early: those that arrived are durable and count even if this raises.

        With a `checksum` all of them count or none. `on_takeover` is called in another thread when another
        request wants the upload: it should make `pieces` end. Raises what `pieces` raises, ChecksumMismatch,
        InsufficientStorage.
        """
        facts = self.settle()
        if checksum is not None:
            with atomic_write(self._unchecked) as file:
                file.write(str(facts.offset_bytes).encode())
        running = running_hash(self._hash_record, facts.offset_bytes)
        with self._watcher.watch(self._folder / "about.json", on_takeover):
            if checksum is None:
                self._write(pieces, facts, running, None)
                return
            digest = checksum.new_hash()
            try:
                self._write(pieces, facts, running, digest)
                if digest.digest() != checksum.digest:
                    raise ChecksumMismatch(  # noqa: TRY301 - these bytes are dropped as well
                        f"The body's {checksum.algorithm} is another one; none of it was kept.",
                        {"offset_bytes": facts.offset_bytes},
                    )
            except BaseException:
                self.undo_unchecked()
                raise
            self._forget_unchecked()
            if running is not None:
                running.save()

    def _write(
        self,
        pieces: Iterable[bytes],
        facts: UploadFacts,
        running: RunningHash | None,
        digest: hashlib._Hash | None,
    ) -> None:
        """Append the bytes to the file; `digest`, if they have a checksum, is updated with them."""
        start, length = facts.offset_bytes, facts.about.length_bytes
        with self._space.disk_full_reported(length or start + SYNC_BYTES), opened(self.video, _APPEND) as fd:
            is_allocated = _is_allocated(fd, length)

            def on_sync(size_bytes: int) -> None:
                if not is_allocated:
                    self._promise_rest(size_bytes, length)
                if digest is None and running is not None and running.hashed_bytes <= size_bytes:
                    running.save()  # these bytes will not be dropped again

            if running is not None:
                running.read_to(fd, start)
            writer = UploadWriter(fd, start, on_sync)
            try:
                for piece in pieces:
                    if digest is not None:
                        digest.update(piece)
                    writer.write(piece)
                    if running is not None:
                        running.take(piece)
            finally:
                fail_point("chunk_received")
                writer.finish()
                fail_point("chunk_durable")

    def sha256(self) -> str | None:
        """Return the hex digest of all bytes; None if too many of them would have to be read for it."""
        size = self.facts().offset_bytes
        running = running_hash(self._hash_record, size)
        if running is None:
            return None
        with opened(self.video, os.O_RDONLY) as descriptor:
            running.read_to(descriptor, size)
        return running.hexdigest() if running.hashed_bytes == size else None

    def _forget_unchecked(self) -> None:
        self._unchecked.unlink()
        fsync_folder(self._folder)

    def undo_unchecked(self) -> None:
        """Drop bytes whose checksum was never compared."""
        with suppress(FileNotFoundError):
            self._cut(int(self._unchecked.read_text()))
            self._forget_unchecked()

    def cut_at_hole(self) -> bool:
        """Drop everything after the first byte that was never written; return whether there was any."""
        with suppress(FileNotFoundError):
            with opened(self.video, os.O_RDONLY) as descriptor:
                size, end = os.fstat(descriptor).st_size, bytes_before_hole(descriptor)
            if end < size:
                self._cut(end)
            return end < size
        return False

    def _cut(self, size_bytes: int) -> None:
        """Shorten the file, and allocate the rest again if there is still room."""
        with opened(self.video, os.O_WRONLY) as descriptor:
            if os.fstat(descriptor).st_size > size_bytes:
                os.ftruncate(descriptor, size_bytes)
                with suppress(OSError):
                    allocate(descriptor, self.facts().about.length_bytes or 0)
            os.fsync(descriptor)

    def spend(self, *, job_id: str | None = None, final_id: str | None = None) -> None:
        """Record what the bytes have become, and remove the upload's name of their file."""
        self.record(job_id=job_id, final_id=final_id)
        fail_point("upload_spent")
        self.drop_bytes()

    def drop_bytes(self) -> None:
        self.video.unlink(missing_ok=True)
        self._space.release(self._promise)

    def remove(self) -> None:
        """Remove the upload and everything in its folder."""
        shutil.rmtree(self._folder)
        fsync_folder(self._folder.parent)
        self._space.release(self._promise)

    def renew_promise(self) -> None:
        """Promise the space that the upload still needs, unless it is allocated."""
        with suppress(FileNotFoundError), opened(self.video, os.O_RDONLY) as descriptor:
            length = self.facts().about.length_bytes
            if not _is_allocated(descriptor, length):
                self._promise_rest(os.fstat(descriptor).st_size, length)

    def _promise_rest(self, size_bytes: int, length_bytes: int | None) -> None:
        coming = SYNC_BYTES if length_bytes is None else length_bytes - size_bytes
        if coming > 0:
            self._space.reserve(self._promise, coming, seconds=self._keep_seconds)
        else:
            self._space.release(self._promise)


def _is_allocated(descriptor: int, length_bytes: int | None) -> bool:
    return length_bytes is not None and os.fstat(descriptor).st_blocks * 512 >= length_bytes


def _write_about(folder: Path, about: About) -> None:
    with atomic_write(folder / "about.json") as file:
        file.write(orjson.dumps(about))


def _read_facts(folder: Path, keep_seconds: float) -> UploadFacts:
    """The video may change or vanish meanwhile: the result was true at one moment."""
    try:
        record, told_at = (folder / "about.json").read_bytes(), (folder / "about.json").stat().st_mtime
    except FileNotFoundError as error:
        raise _not_found(folder.name) from error
    members = orjson.loads(record)
    known = {member.name: members[member.name] for member in fields(About) if member.name in members}
    about = About(**(known | {"parts": tuple(members["parts"])}))  # another version may have written more
    size, written_at = 0, 0.0
    with suppress(FileNotFoundError):  # used, or not joined yet
        video = (folder / "video").stat()
        size, written_at = video.st_size, video.st_mtime
        with suppress(FileNotFoundError):  # bytes whose checksum was not compared yet do not count
            size = min(size, int((folder / "unchecked").read_text()))
    is_spent = (about.job_id or about.final_id) is not None
    offset = about.length_bytes or 0 if is_spent else size
    return UploadFacts(folder.name, about, offset, is_spent, max(told_at, written_at) + keep_seconds)


def _is_of(folder: Path, owner: str) -> bool:
    try:
        return bool(orjson.loads((folder / "about.json").read_bytes())["owner"] == owner)
    except FileNotFoundError:  # removed meanwhile
        return False


def _not_found(upload_id: str) -> UploadNotFound:
    return UploadNotFound(f"There is no upload {upload_id[:40]!r}.")
