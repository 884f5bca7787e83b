"""Writes that survive a power failure: whole and on disk, or absent."""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.failpoints import fail_point
from app.libc import LIBC

_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE = 1, 2  # sync_file_range(2)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is only safe once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def remove_unfinished(path: Path) -> None:
    """Remove what killed writers of `path` left. The caller knows that no writer is at work."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, *, durable_name: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path` only if the block succeeds: whole and durable, or absent.

    Without `durable_name` a power failure may leave what was at `path` before, until the folder is synced.
    Two writers may race (a retried segment): the last to finish wins, and neither is seen half done.
    The file is buffered, so that a short write near a full disk raises OSError instead of passing.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            fail_point("file_written")
            os.fsync(file.fileno())
        fail_point("file_durable")
        temporary.replace(path)
        fail_point("file_renamed")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable_name:
        fsync_folder(path.parent)
