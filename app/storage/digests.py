"""Digests of files, and of uploads on their way to one."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterable

_READ_BYTES = 1024 * 1024
_INLINE_BYTES = 4 * 1024 * 1024  # of an upload, before a thread is worth its while
_PIECES_HELD = 1  # and one at work: each is a quarter of a mebibyte, and there may be 90 uploads
_WAIT_SECONDS = 60.0  # for the hash of two such pieces


def file_digests(descriptor: int, algorithms: Iterable[str]) -> dict[str, bytes]:
    """Return the digests of the whole file by algorithm (hashlib's names); the file is read once."""
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    buffer, offset = bytearray(max(1, min(_READ_BYTES, os.fstat(descriptor).st_size))), 0
    view = memoryview(buffer)
    while count := os.preadv(descriptor, [buffer], offset):
        for digest in hashes.values():
            digest.update(view[:count])
        offset += count
    return {algorithm: digest.digest() for algorithm, digest in hashes.items()}


class ParallelHash:
    """SHA-256 of bytes that pass: by a thread of its own once they are many, beside whoever writes them.

    One thread uses it. `close` it, or the thread stays.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._hashed_here = 0
        self._pieces: queue.Queue[bytes | memoryview | None] = queue.Queue(_PIECES_HELD)
        self._thread: threading.Thread | None = None

    def update(self, piece: bytes | memoryview) -> None:
        """Take in `piece`, which must not change after this."""
        if self._thread is not None:
            self._pieces.put(piece, timeout=_WAIT_SECONDS)
            return
        self._hash.update(piece)
        self._hashed_here += len(piece)
        if self._hashed_here >= _INLINE_BYTES:
            self._thread = threading.Thread(target=self._run, name="upload-hash", daemon=True)
            self._thread.start()

    def hexdigest(self) -> str:
        """The digest of all pieces so far."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread, if there is one, once it has hashed what it was given."""
        if self._thread is not None:
            self._pieces.put(None, timeout=_WAIT_SECONDS)
            self._thread.join(timeout=_WAIT_SECONDS)
            if self._thread.is_alive():
                raise RuntimeError("a digest does not come to its end")
            self._thread, self._hashed_here = None, 0

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:  # its owner ends it: see close
            self._hash.update(piece)
