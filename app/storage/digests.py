"""Digests of files that are read once, from the page cache where they are still in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

_READ_BYTES = 1024 * 1024


def file_digests(descriptor: int, algorithms: Iterable[str]) -> dict[str, bytes]:
    """Return the digests of the whole file by algorithm (hashlib's names); the file is read once."""
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    buffer, offset = bytearray(_READ_BYTES), 0
    view = memoryview(buffer)
    while count := os.preadv(descriptor, [buffer], offset):
        for digest in hashes.values():
            digest.update(view[:count])
        offset += count
    return {algorithm: digest.digest() for algorithm, digest in hashes.items()}
