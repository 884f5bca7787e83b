"""Bodies that nginx writes to disk: where they are, which one a request may name, what a killed nginx left.

``bodies/<xx>/<ten digits>``: nginx chooses the number, but the folder has the first two digits of the
request's id. So a request can only name one of the few files in its own folder, and a promise of disk space
knows where its bytes arrive.

nginx holds a file open for writing during its request, and removes it at the request's end unless the
application has moved it away. A file that no process has open for writing was left by a killed nginx.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import IncompleteBody
from app.storage.data_folder import DataFolder
from app.storage.descriptors import opened
from app.storage.hashing import file_digests
from app.storage.locks import try_lock

SETTLED_SECONDS = 10.0  # a younger file may not be open for writing yet: nginx takes microseconds
FOLDER_NAMES = tuple(f"{number:02x}" for number in range(256))
NO_BODY_FOLDER = "none"  # empty files of requests whose bodies nginx gave up; left when it is killed
_NOTE_SUFFIX = ".sha256"
_LONGEST_NOTE_BYTES = 200
_NOTE_SECONDS = 0.005  # between two looks at a note
_FOLLOWER_SECONDS = 10.0  # a follower that is slower than this and the next counts as hanging
_FOLLOWER_BYTES_PER_SECOND = 50_000_000
_FILE_NAME = re.compile(r"[0-9]{10}")


class BodyFault(Exception):
    """The named file is not this request's body. A bug or a forgery; the text is for the log."""


@dataclass
class SpooledBody:
    """A whole body, open for reading. Only the nginx that wrote it also uses its file."""

    path: Path
    descriptor: int
    size_bytes: int
    note: int | None = None  # a descriptor: see app/storage/follower.py
    _known: dict[str, bytes] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hex digest; read from the file when first asked for."""
        return self.digests(("sha256",))["sha256"].hex()

    def digests(self, algorithms: Sequence[str]) -> dict[str, bytes]:
        """Return the known digests, at least `algorithms` (hashlib's names), computed in one pass.

        SHA-256 is computed with any other: it will be needed.
        """
        missing = {*algorithms, "sha256"} - self._known.keys() if algorithms else set()
        if missing == {"sha256"} and (followed := self._followed_digest()):
            self._known["sha256"] = followed
        elif missing:
            self._known |= file_digests(self.descriptor, missing)
        return self._known

    def _followed_digest(self) -> bytes | None:
        """Return the SHA-256 that the follower computed while nginx wrote; None if there is none."""
        if self.note is None:
            return None
        deadline = time.monotonic() + _FOLLOWER_SECONDS + self.size_bytes / _FOLLOWER_BYTES_PER_SECOND
        while time.monotonic() < deadline:
            if not try_lock(self.note, shared=True):
                time.sleep(_NOTE_SECONDS)
            else:
                digest, _, rest = os.pread(self.note, _LONGEST_NOTE_BYTES, 0).partition(b" ")
                is_this = rest == _identity(os.fstat(self.descriptor), self.size_bytes)
                return bytes.fromhex(digest.decode()) if is_this else None
        return None

    def move_to(self, target: Path) -> None:
        """Move the file away from nginx. Raises IncompleteBody if it is gone."""
        try:
            self.path.rename(target)
        except FileNotFoundError as error:
            raise _gone() from error
        if not os.path.samestat(os.fstat(self.descriptor), target.stat(follow_symlinks=False)):
            raise BodyFault("the body was exchanged")


class BodyFolders:
    """The folders in which nginx writes. Safe to use from many threads and processes at once."""

    def __init__(self, folder: DataFolder) -> None:
        self._root = folder.bodies

    def paths(self, name: str) -> list[Path]:
        """Return the bodies in the folder of that name."""
        return [path for path, _status in self._files(name) if _FILE_NAME.fullmatch(path.name)]

    def sizes(self, name: str) -> list[int]:
        """Return the bytes of each body that lies or grows in the folder of that name."""
        return [status.st_size for path, status in self._files(name) if _FILE_NAME.fullmatch(path.name)]

    @contextmanager
    def open(self, named: str, *, request_id: str, expected_bytes: int) -> Iterator[SpooledBody]:
        """Yield the body that nginx says it wrote for this request.

        Raises BodyFault unless `named` is a whole file that nginx wrote in this request's folder,
        IncompleteBody if it is gone: nginx removes it when the client disconnects.
        """
        folder, _, name = named.rpartition("/")
        expected = self._root / folder_name(request_id)
        if folder != str(expected) or not _FILE_NAME.fullmatch(name):
            raise BodyFault("the path does not belong to this request")
        flags = os.O_RDONLY | os.O_NOFOLLOW  # no link, neither of the file nor of its folder
        with ExitStack() as stack:
            try:
                with opened(expected, flags | os.O_DIRECTORY) as directory:
                    descriptor = stack.enter_context(opened(name, flags | os.O_NONBLOCK, dir_fd=directory))
            except FileNotFoundError as error:
                raise _gone() from error
            except OSError as error:
                raise BodyFault("the file cannot be opened") from error
            note = None
            with suppress(OSError):
                note = stack.enter_context(opened(note_of(expected / name), flags))
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BodyFault("it is not a regular file")
            if status.st_nlink != 1:
                raise BodyFault("the file has another name, or none")
            if status.st_uid != os.geteuid():
                raise BodyFault("the file is another user's")
            if status.st_size != expected_bytes:
                raise BodyFault("the file is not as long as the body")
            yield SpooledBody(expected / name, descriptor, expected_bytes, note)

    def remove_leftovers(self) -> int:
        """Remove what a killed nginx left, never a body that is arriving; return how many files."""
        return sum(_remove_unless_written(path, status) for path, status in [*self._all_files()])

    def remove_all(self) -> None:
        """Remove every body. The caller knows that no nginx of this data folder is alive."""
        for path, _status in self._all_files():
            path.unlink(missing_ok=True)

    def _all_files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for name in (*FOLDER_NAMES, NO_BODY_FOLDER):
            yield from self._files(name)

    def _files(self, name: str) -> Iterator[tuple[Path, os.stat_result]]:
        with suppress(FileNotFoundError), os.scandir(self._root / name) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # its request has just ended
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield Path(entry.path), status


def note_of(body: Path) -> Path:
    """Return where the follower of `body` records its digest."""
    return body.with_name(f"{body.name}{_NOTE_SUFFIX}")


def note_text(status: os.stat_result, size_bytes: int, digest: hashlib._Hash) -> bytes:
    """Return the follower's record of a body: its digest, the file's identity and its size."""
    return digest.hexdigest().encode() + b" " + _identity(status, size_bytes)


def _identity(status: os.stat_result, size_bytes: int) -> bytes:
    return f"{status.st_dev} {status.st_ino} {size_bytes}".encode()


def folder_name(request_id: str) -> str:
    """Return the name of the folder in which nginx writes the body of the request with that id."""
    return request_id[:2]


def _gone() -> IncompleteBody:
    return IncompleteBody("The client went away before its body was taken up.")


def _remove_unless_written(path: Path, status: os.stat_result) -> bool:
    """The kernel grants a read lease only on a file that no process, in any container, is writing."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            return False  # it is gone, or being written, or this file system has no leases
        if time.time() - status.st_mtime < SETTLED_SECONDS:
            return False
        path.unlink(missing_ok=True)
        return True
