"""Writes that survive a power failure: whole and on disk, or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.failpoints import fail_point
from app.storage.descriptors import opened


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is only safe once its folder is synced."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


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
