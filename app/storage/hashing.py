"""Hashing: of files, of bytes on their way to one, and of files that grow over days.

A file that grows is hashed by one process after another, so the hash's state is kept beside it
(`RunningHash`). hashlib does not export its state, so this is RustCrypto's SHA-256 (rehashes), which is as
fast as OpenSSL's. A state records how many bytes are in it: an older one catches up with the file, and a lost
one costs the digest, or a read of a file that is still small. It is overwritten without fsync or rename,
which would cost a small request more than its bytes do; its own checksum reveals a torn write.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rehashes import PySha256

from app.storage.descriptors import opened
from app.storage.durable import fsync_folder

CATCH_UP_BYTES = 256 * 1024 * 1024  # read for the digest only: half a second, mostly from memory
_READ_BYTES = 1024 * 1024
_INLINE_BYTES = 4 * 1024 * 1024  # of an upload, before a thread pays off
_PIECES_HELD = 1  # and one at work: each is a quarter of a mebibyte, and there may be 90 uploads
_WAIT_SECONDS = 60.0  # for the hash of two such pieces
_PIECE_BYTES = 256 * 1024  # of a running hash: others wait 0.15 ms for it
_FORMAT = b"sha2 0.11"  # of the states; another version may have another
_SUM_BYTES = 32

ALGORITHMS = ("sha256", "sha1", "md5")  # hashlib's names


@dataclass(frozen=True, slots=True)
class Checksum:
    """The digest that some bytes must have."""

    algorithm: str  # one of ALGORITHMS
    digest: bytes

    def new_hash(self) -> hashlib._Hash:
        return hashlib.new(self.algorithm, usedforsecurity=False)

    @property
    def is_complete(self) -> bool:
        """Whether the digest has the algorithm's length."""
        return len(self.digest) == self.new_hash().digest_size


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
    """SHA-256 of passing bytes, computed in a thread of its own once they are many.

    For use by one thread. `close` it, or its thread stays.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._hashed_here = 0
        self._pieces: queue.Queue[bytes | memoryview | None] = queue.Queue(_PIECES_HELD)
        self._thread: threading.Thread | None = None

    def update(self, piece: bytes | memoryview) -> None:
        """Hash `piece`, which must not change afterwards."""
        if self._thread is not None:
            self._pieces.put(piece, timeout=_WAIT_SECONDS)
            return
        self._hash.update(piece)
        self._hashed_here += len(piece)
        if self._hashed_here >= _INLINE_BYTES:
            self._thread = threading.Thread(target=self._run, name="upload-hash", daemon=True)
            self._thread.start()

    def hexdigest(self) -> str:
        """Return the digest of all pieces so far."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread, if there is one, once it has hashed all pieces."""
        if self._thread is not None:
            self._pieces.put(None, timeout=_WAIT_SECONDS)
            self._thread.join(timeout=_WAIT_SECONDS)
            if self._thread.is_alive():
                raise RuntimeError("a digest does not come to its end")
            self._thread, self._hashed_here = None, 0

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:  # its owner ends it: see close
            self._hash.update(piece)


class RunningHash:
    """SHA-256 of a file's first `hashed_bytes`. Its user has the file for itself."""

    def __init__(self, record: Path, state: PySha256, hashed_bytes: int) -> None:
        self.hashed_bytes = hashed_bytes
        self._record = record
        self._state = state

    def take(self, piece: bytes) -> None:
        """Hash the next bytes of the file, given as `piece`."""
        self._state.update(piece)
        self.hashed_bytes += len(piece)

    def read_to(self, descriptor: int, end: int) -> None:
        """Hash the file's bytes up to `end`, or up to its end. Raises OSError."""
        while self.hashed_bytes < end:
            count = min(_PIECE_BYTES, end - self.hashed_bytes)
            piece = os.pread(descriptor, count, self.hashed_bytes)
            if not piece:
                return
            self.take(piece)

    def save(self) -> None:
        """Save the state if the disk has room. The caller knows that these bytes will stay.

        An upload continues without it; at worst it has no digest.
        """
        text = b"%s\n%020d\n%s" % (_FORMAT, self.hashed_bytes, self._state.serialize())
        with suppress(OSError), opened(self._record, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, hashlib.sha256(text).digest() + text, 0)

    def hexdigest(self) -> str:
        return str(self._state.finalize())


def running_hash(record: Path, size_bytes: int) -> RunningHash | None:
    """Return the hash of a file of `size_bytes`; None if it would have to read too many of them.

    A state of more bytes than the file has is deleted, durably: the file was cut, and may grow differently.
    """
    found = RunningHash(record, PySha256(), 0)
    content = record.read_bytes() if record.exists() else b""
    checksum, text = content[:_SUM_BYTES], content[_SUM_BYTES:]
    form, _, rest = text.partition(b"\n")
    if hashlib.sha256(text).digest() == checksum and form == _FORMAT:
        size, _, state = rest.partition(b"\n")
        if int(size) <= size_bytes:
            found = RunningHash(record, PySha256.deserialize(state), int(size))
        else:
            record.unlink()
            fsync_folder(record.parent)
    return found if size_bytes - found.hashed_bytes <= CATCH_UP_BYTES else None
