"""The administrator's ingest folders: files that are read in place, and nothing outside these folders.

A path is never passed on: the file is opened once, beneath its folder, and from then on is its descriptor.
The kernel resolves the path (openat2 with RESOLVE_BENEATH), so that no symbolic link, no ``..`` and no rename
in between leads out of the folder. If the kernel cannot (before Linux 5.6, or if a filter forbids the call),
the path is walked folder by folder, and no symbolic link is followed at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.errors import InvalidSource, SourceChanged, SourceNotFound
from app.libc import LIBC, checked
from app.storage.descriptors import opened

_SYS_OPENAT2 = 437  # the same on every architecture that has the call
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_CANNOT_RESOLVE = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG)
_TRIES = 8  # openat2 says EAGAIN while folders on the way are being renamed
_LONGEST_PATH_BYTES = 4095  # PATH_MAX less the closing NUL


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What shows whether a file is still the same.

    The device number is not included: a restart of the machine or a new mount may change it.
    """

    inode: int
    size_bytes: int
    modified_ns: int  # Unix nanoseconds

    @classmethod
    def of(cls, descriptor: int) -> FileIdentity:
        status = os.fstat(descriptor)
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class IngestFile:
    """An open file of an ingest folder. `path` leads to this file even if it is renamed."""

    descriptor: int
    identity: FileIdentity

    @property
    def path(self) -> Path:
        """Valid in this process only, and while the file is open."""
        return Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")

    def check_unchanged(self, expected: FileIdentity | None = None) -> None:
        """Raise SourceChanged if the file is not as `expected`, or as it was when it was opened."""
        if FileIdentity.of(self.descriptor) != (expected or self.identity):
            raise SourceChanged("The file has changed since its job was accepted.")


class Ingest:
    """The files beneath the ingest `folders`, which are absolute."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    @contextmanager
    def open(self, path: str) -> Iterator[IngestFile]:
        """Yield the regular file `path`, open for reading: absolute, or relative to one of the folders.

        Raises InvalidSource if the path lies in none of them, SourceNotFound if there is no such file.
        """
        places = [*self._places(path)]
        if not places:
            raise InvalidSource(
                "path: lies in none of the folders from which files may be read.",
                {"parameter": "path", "allowed": "a file in a folder of FRAMEBOX_INGEST"},
            )
        found = (_open_beneath(folder, inside) for folder, inside in places)
        descriptor = next((each for each in found if each is not None), None)
        if descriptor is None:
            raise SourceNotFound("path: no readable regular file is there.", {"parameter": "path"})
        try:
            yield IngestFile(descriptor, FileIdentity.of(descriptor))
        finally:
            os.close(descriptor)

    def _places(self, path: str) -> Iterator[tuple[Path, PurePosixPath]]:
        """Yield where to look: each folder, and the path from there. Does not access the disk."""
        if not path or "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
            return
        wanted = PurePosixPath(path)
        for folder in self._folders:
            inside = wanted.relative_to(folder) if wanted.is_relative_to(folder) else wanted
            if not inside.is_absolute() and inside.parts and ".." not in inside.parts:
                yield folder, inside


def _open_beneath(folder: Path, inside: PurePosixPath) -> int | None:
    """Return a descriptor to read the regular file with; None if there is no readable one."""
    is_folder_open = False
    try:
        with opened(folder, os.O_PATH | os.O_DIRECTORY) as root:
            is_folder_open = True
            found = _resolve(root, inside)
        try:
            # Check the type first: opening a FIFO waits for its writer, opening a device may have effects.
            if not stat.S_ISREG(os.fstat(found).st_mode):
                return None
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        finally:
            os.close(found)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # not the path's fault
        if error.errno == errno.EIO and is_folder_open:  # if the folder itself fails, others are tried
            raise
        return None


def _resolve(root: int, inside: PurePosixPath) -> int:
    """Return an O_PATH descriptor of `inside`, which is beneath `root`. Raises OSError."""
    # struct open_how: flags, mode, resolve
    how = struct.pack("=3Q", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_TRIES):
        try:
            return checked(
                LIBC.syscall(
                    ctypes.c_long(_SYS_OPENAT2),
                    ctypes.c_int(root),
                    ctypes.c_char_p(os.fsencode(inside)),
                    ctypes.c_char_p(how),
                    ctypes.c_size_t(len(how)),
                )
            )
        except OSError as error:
            if error.errno in _CANNOT_RESOLVE:
                break
            if error.errno != errno.EAGAIN:
                raise
    return walk_beneath(root, inside)


def walk_beneath(root: int, inside: PurePosixPath) -> int:
    """Return an O_PATH descriptor of `inside`, walked from `root` name by name. A link raises OSError."""
    current = os.dup(root)
    for names_left, name in zip(range(len(inside.parts) - 1, -1, -1), inside.parts, strict=True):
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECTORY if names_left else 0)
        try:
            following = os.open(name, flags, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current
