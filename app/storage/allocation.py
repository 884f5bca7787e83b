"""Disk space of a file apart from its size: taken ahead, given back from the front."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 0x01  # fallocate(2): take the blocks, leave the size
_PUNCH_HOLE = 0x02
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def allocate(descriptor: int, size_bytes: int) -> bool:
    """Take the disk space of the file's first `size_bytes`; its size stays. False where that cannot be done.

    Raises OSError if there is not so much.
    """
    return size_bytes == 0 or _fallocate(descriptor, _KEEP_SIZE, 0, size_bytes)


def give_back_front(descriptor: int, size_bytes: int) -> bool:
    """Give back the space of the file's first `size_bytes`, which then read as zeros; False if impossible."""
    return size_bytes == 0 or _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, 0, size_bytes)


def bytes_before_hole(descriptor: int) -> int:
    """How many bytes from the start have been written; the size where the file system knows of no holes."""
    if not os.fstat(descriptor).st_size:
        return 0
    return os.lseek(descriptor, 0, os.SEEK_HOLE)


def _fallocate(descriptor: int, mode: int, offset: int, size_bytes: int) -> bool:
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(descriptor, mode, offset, size_bytes) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code))
