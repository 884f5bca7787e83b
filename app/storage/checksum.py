"""Digests that a sender tells of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_HASHES: Mapping[str, Callable[[], hashlib._Hash]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
}
ALGORITHMS = tuple(_HASHES)


@dataclass(frozen=True, slots=True)
class Checksum:
    """The digest that some bytes must have."""

    algorithm: str  # one of ALGORITHMS
    digest: bytes

    def new_hash(self) -> hashlib._Hash:
        return _HASHES[self.algorithm]()

    @property
    def is_complete(self) -> bool:
        """Whether the digest is as long as the algorithm's are."""
        return len(self.digest) == self.new_hash().digest_size
