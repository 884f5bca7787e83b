"""SHA-256 of a file that grows over days, by one process after another: its state is kept beside the file.

hashlib gives no state away, so this is RustCrypto's SHA-256 (rehashes), as fast as OpenSSL's. A state says
how many bytes are in it. So one that is older than the file goes on with the bytes that it lacks, and one
that is lost costs a digest, or the reading of a file that is still small. It is written over the one before,
without fsync or rename, which would cost a small request more than its bytes do: its own checksum tells one
that is half written.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rehashes import PySha256

from app.storage.durable import fsync_folder

CATCH_UP_BYTES = 256 * 1024 * 1024  # that are read for the digest alone: half a second, from memory mostly
_READ_BYTES = 256 * 1024
_FORMAT = b"sha2 0.11"  # whose states these are; others may look otherwise
_SUM_BYTES = 32


class RunningHash:
    """SHA-256 of a file's first `hashed_bytes`. Whoever has it has the file for itself."""

    def __init__(self, record: Path, state: PySha256, hashed_bytes: int) -> None:
        self.hashed_bytes = hashed_bytes
        self._record = record
        self._state = state

    def take(self, piece: bytes) -> None:
        """Take in what follows in the file, without a look there. Other threads wait: 0.15 ms for 256 KiB."""
        self._state.update(piece)
        self.hashed_bytes += len(piece)

    def read_to(self, descriptor: int, end: int) -> None:
        """Take in the file's bytes up to `end`, or up to its own. Raises OSError."""
        while self.hashed_bytes < end:
            count = min(_READ_BYTES, end - self.hashed_bytes)
            piece = os.pread(descriptor, count, self.hashed_bytes)
            if not piece:
                return
            self.take(piece)

    def save(self) -> None:
        """Keep the state. The caller knows that these bytes will not be taken back. Raises OSError."""
        text = b"%s\n%020d\n%s" % (_FORMAT, self.hashed_bytes, self._state.serialize())
        descriptor = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, hashlib.sha256(text).digest() + text, 0)
        finally:
            os.close(descriptor)

    def hexdigest(self) -> str:
        return str(self._state.finalize())


def running_hash(record: Path, size_bytes: int) -> RunningHash | None:
    """The hash to go on with, of a file of `size_bytes`; None if too many of them would have to be read.

    A state of more bytes than the file has is forgotten, durably: the file was cut, and others may follow.
    """
    found = _load(record)
    if found is not None and found.hashed_bytes > size_bytes:
        record.unlink()
        fsync_folder(record.parent)
        found = None
    found = found or RunningHash(record, PySha256(), 0)
    return found if size_bytes - found.hashed_bytes <= CATCH_UP_BYTES else None


def _load(record: Path) -> RunningHash | None:
    try:
        content = record.read_bytes()
    except FileNotFoundError:
        return None
    checksum, text = content[:_SUM_BYTES], content[_SUM_BYTES:]
    form, _, rest = text.partition(b"\n")
    if hashlib.sha256(text).digest() != checksum or form != _FORMAT:
        return None
    size, _, state = rest.partition(b"\n")
    return RunningHash(record, PySha256.deserialize(state), int(size))
