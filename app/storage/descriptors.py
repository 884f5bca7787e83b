"""System calls on open files that Python lacks, or that may do less than they are asked."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.libc import LIBC, checked

_KEEP_SIZE = 0x01  # fallocate(2): take the blocks, leave the size
_PUNCH_HOLE = 0x02
_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE = 1, 2  # sync_file_range(2)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV)  # by this file system


@contextmanager
def opened(path: Path | str, flags: int, *, dir_fd: int | None = None) -> Iterator[int]:
    """Yield a descriptor of `path`, as `os.open` returns it, and close it. Raises OSError."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_whole(descriptor: int, *pieces: bytes | memoryview) -> None:
    """Write all of `pieces`. Raises OSError, also if the disk fills up on the way."""
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:  # a write near a full disk may be short
        written = os.writev(descriptor, rest)
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][written:]


def copy_bytes(source: int, destination: int, offset: int, count: int) -> int:
    """Copy up to `count` bytes from `offset` of `source` to the position of `destination`; return how many.

    The kernel copies, at best without writing anything. Raises OSError, also if `source` ends there.
    """
    try:
        copied = os.copy_file_range(source, destination, count, offset_src=offset)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        # sendfile works on every file system and costs one copy.
        copied = os.sendfile(destination, source, offset, count)
    if not copied:
        raise OSError(errno.EIO, "a file ended before the bytes that were to be copied")
    return copied


def allocate(descriptor: int, size_bytes: int) -> bool:
    """Allocate the file's first `size_bytes` without changing its size. False if the file system cannot.

    Raises OSError if the disk has not enough space.
    """
    return size_bytes == 0 or _fallocate(descriptor, _KEEP_SIZE, size_bytes)


def give_back_front(descriptor: int, size_bytes: int) -> bool:
    """Free the space of the file's first `size_bytes`, which then read as zeros. False if impossible."""
    return size_bytes == 0 or _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, size_bytes)


def _fallocate(descriptor: int, mode: int, size_bytes: int) -> bool:
    try:
        checked(LIBC.fallocate(descriptor, mode, ctypes.c_int64(0), ctypes.c_int64(size_bytes)))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def bytes_before_hole(descriptor: int) -> int:
    """Return how many bytes from the start were written: the size if the file system has no holes."""
    if not os.fstat(descriptor).st_size:
        return 0
    return os.lseek(descriptor, 0, os.SEEK_HOLE)


def start_write_back(descriptor: int, offset: int = 0, size_bytes: int = 0) -> None:
    """Start writing the file's dirty pages in that range to disk; `size_bytes` of 0 means to its end.

    A hint: it neither waits nor guarantees anything.
    """
    _sync_file_range(descriptor, offset, size_bytes, _SYNC_FILE_RANGE_WRITE)


def wait_for_write_back(descriptor: int, end: int) -> None:
    """Wait until the file's pages before `end` whose write-back was started are no longer dirty.

    It bounds memory and guarantees nothing: an error shows at the next fsync.
    """
    if end:
        _sync_file_range(descriptor, 0, end, _SYNC_FILE_RANGE_WAIT_BEFORE)


def _sync_file_range(descriptor: int, offset: int, size_bytes: int, flags: int) -> None:
    LIBC.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), ctypes.c_uint(flags))
