"""Appending to a file so that a power failure leaves what was written, from the start and without gaps.

A file system may make a file's new size durable before its bytes. Whole blocks that are missing then are
holes (`bytes_before_hole`), but a block that was begun earlier cannot be told from a written one. So a write
ends at the end of a block, and the rest of a block that an earlier request began is made durable first.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from app.storage.descriptors import write_whole

BLOCK_BYTES = 4096  # what the file systems of machines with pages of this size fill at once
SYNC_BYTES = 64 * 1024 * 1024  # dirty pages that an upload leaves at most


class UploadWriter:
    """Appends to the file `descriptor`, which has O_APPEND and is `size_bytes` long.

    `on_sync` is called with the size that has become durable.
    """

    def __init__(self, descriptor: int, size_bytes: int, on_sync: Callable[[int], None]) -> None:
        self.size_bytes = size_bytes  # with bytes that are still held back
        self._descriptor = descriptor
        self._on_sync = on_sync
        self._begun = -size_bytes % BLOCK_BYTES  # bytes missing in the last block
        self._held = b""
        self._unsynced_bytes = 0

    def write(self, data: bytes) -> None:
        """Append `data`; up to a block of it may be held back until `finish`. Raises OSError."""
        self.size_bytes += len(data)
        view = memoryview(data)
        if self._begun:
            end = min(self._begun, len(view))
            self._put(view[:end])
            self._begun -= end
            os.fdatasync(self._descriptor)
            view = view[end:]
        held_next = (len(self._held) + len(view)) % BLOCK_BYTES
        if len(self._held) + len(view) < BLOCK_BYTES:
            self._held += view
            return
        held, self._held = self._held, b""  # if the disk is full, `finish` must not write it again
        self._put(held, view[: len(view) - held_next])
        self._held = bytes(view[len(view) - held_next :])
        if self._unsynced_bytes >= SYNC_BYTES:
            self._sync()

    def finish(self) -> None:
        """Make all bytes durable. Raises OSError."""
        held, self._held = self._held, b""
        self._put(held)
        self._sync()

    def _put(self, *pieces: bytes | memoryview) -> None:
        write_whole(self._descriptor, *pieces)
        self._unsynced_bytes += sum(map(len, pieces))

    def _sync(self) -> None:
        os.fdatasync(self._descriptor)
        self._unsynced_bytes = 0
        self._on_sync(self.size_bytes - len(self._held))
