"""The disk space of a file, independent of its size: allocated ahead, freed from the front."""

from __future__ import annotations

import ctypes
import errno
import os

from app.libc import LIBC, checked

_KEEP_SIZE = 0x01  # fallocate(2): take the blocks, leave the size
_PUNCH_HOLE = 0x02
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def allocate(descriptor: int, size_bytes: int) -> bool:
    """Allocate the file's first `size_bytes` without changing its size. False if the file system cannot.

    Raises OSError if the disk has not enough space.
    """
    return size_bytes == 0 or _fallocate(descriptor, _KEEP_SIZE, 0, size_bytes)


def give_back_front(descriptor: int, size_bytes: int) -> bool:
    """Free the space of the file's first `size_bytes`, which then read as zeros. False if impossible."""
    return size_bytes == 0 or _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, 0, size_bytes)


def bytes_before_hole(descriptor: int) -> int:
    """Return how many bytes from the start were written: the size if the file system has no holes."""
    if not os.fstat(descriptor).st_size:
        return 0
    return os.lseek(descriptor, 0, os.SEEK_HOLE)


def _fallocate(descriptor: int, mode: int, offset: int, size_bytes: int) -> bool:
    try:
        checked(LIBC.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)))
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True
