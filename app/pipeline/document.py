"""The one JSON of a video: the bodies of its parts in order, joined by the kernel, never parsed.

    [
    [0,[…]],
    [1,[]],
    …
    ]

One pair per line: a client can read it line by line in constant memory, without a JSON parser for the whole.

Beside it is a file with the time stamp of each pair's frame, in the same order (int64, little-endian).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.failpoints import fail_point
from app.storage.durable import atomic_write, remove_unfinished
from app.storage.parts import SEPARATOR, Part, Section

OPENING = b"[\n"
CLOSING = b"\n]\n"

_NO_COPY_HERE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_COPY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    size_bytes: int
    sha256: str  # hex, of the document's bytes


class DocumentDigest:
    """The SHA-256 of a document, updated part by part, so that it is known with the last one."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256(OPENING)
        self._has_records = False

    def add(self, part: Part) -> None:
        """Take the next part, in order."""
        if not part.body_bytes:
            return
        if self._has_records:
            self._sha256.update(SEPARATOR)
        self._has_records = True
        for block in part.body.blocks():
            self._sha256.update(block)

    def hexdigest(self) -> str:
        """Return the digest of the document that consists of the parts so far."""
        whole = self._sha256.copy()
        whole.update(CLOSING)
        return whole.hexdigest()


def write_document(parts: Iterable[Part], destination: Path, digest: DocumentDigest) -> DocumentFacts:
    """Join `parts`, in order, into `destination`: whole and durable, or absent.

    One caller at a time. `digest` has taken the same parts. Memory does not depend on their size.
    """
    remove_unfinished(destination)
    with atomic_write(destination) as file:
        size_bytes = file.write(OPENING)
        size_bytes += _join(file, (part.body for part in parts), SEPARATOR)
        fail_point("document_joined")
        size_bytes += file.write(CLOSING)
    return DocumentFacts(size_bytes, digest.hexdigest())


def write_pts(parts: Iterable[Part], destination: Path) -> None:
    """Join the time stamps of `parts`, in order, into `destination`: whole, or absent.

    It is durable once the document is: that is written after it, in the same folder. One caller at a time.
    """
    remove_unfinished(destination)
    with atomic_write(destination, durable_name=False) as file:
        _join(file, (part.pts for part in parts))
    fail_point("pts_written")


def _join(file: BinaryIO, sections: Iterable[Section], separator: bytes = b"") -> int:
    """Append the sections that are not empty; return how many bytes were written."""
    size_bytes = 0
    for section in sections:
        if section.size_bytes:
            size_bytes += file.write(separator if size_bytes else b"")
            file.flush()
            done = 0
            with section.path.open("rb") as source:
                while done < section.size_bytes:
                    offset, count = section.offset + done, min(section.size_bytes - done, _COPY_BYTES)
                    try:
                        copied = os.copy_file_range(source.fileno(), file.fileno(), count, offset_src=offset)
                    except OSError as error:
                        if error.errno not in _NO_COPY_HERE:
                            raise
                        # Not every file system supports copy_file_range; sendfile works on all of them and
                        # costs one copy.
                        copied = os.sendfile(file.fileno(), source.fileno(), offset, count)
                    if copied == 0:
                        raise OSError(errno.EIO, "a part ended before its section did")
                    done += copied
            file.seek(0, os.SEEK_END)
            size_bytes += done
    return size_bytes
