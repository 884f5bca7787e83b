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

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from app.failpoints import fail_point
from app.pipeline.report import DocumentReport
from app.storage.descriptors import copy_bytes
from app.storage.durable import atomic_write, remove_unfinished
from app.storage.parts import SEPARATOR, Part, Section

OPENING = b"[\n"
CLOSING = b"\n]\n"

SECONDS_DECIMALS = 6

_COPY_BYTES = 1 << 30
_PTS = struct.Struct("<q")
_READ_BYTES = _PTS.size * 8192


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


def write_document(parts: Iterable[Part], destination: Path, digest: DocumentDigest) -> DocumentReport:
    """Join `parts`, in order, into `destination`: whole and durable, or absent.

    One caller at a time. `digest` has taken the same parts. Memory does not depend on their size.
    """
    remove_unfinished(destination)
    with atomic_write(destination) as file:
        file.write(OPENING)
        _join(file, (part.body for part in parts), SEPARATOR)
        fail_point("document_joined")
        file.write(CLOSING)
        size_bytes = file.tell()
    return DocumentReport(bytes=size_bytes, sha256=digest.hexdigest())


def write_pts(parts: Iterable[Part], destination: Path) -> None:
    """Join the time stamps of `parts`, in order, into `destination`: whole, or absent.

    It is durable once the document is: that is written after it, in the same folder. One caller at a time.
    """
    remove_unfinished(destination)
    with atomic_write(destination, durable_name=False) as file:
        _join(file, (part.pts for part in parts))
    fail_point("pts_written")


def _join(file: BinaryIO, sections: Iterable[Section], separator: bytes = b"") -> None:
    """Append the sections that are not empty."""
    filled = (section for section in sections if section.size_bytes)
    for number, section in enumerate(filled):
        file.write(separator if number else b"")
        file.flush()
        done = 0
        with section.path.open("rb") as source:
            while done < section.size_bytes:
                count = min(section.size_bytes - done, _COPY_BYTES)
                done += copy_bytes(source.fileno(), file.fileno(), section.offset + done, count)
        file.seek(0, os.SEEK_END)


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """The times of a document's frames, in its order, from a file that `write_pts` wrote."""

    pts: Path
    time_base: Fraction  # seconds of one tick

    def __iter__(self) -> Iterator[float]:
        """Yield the seconds of each frame, as `pts_seconds` returns them."""
        with self.pts.open("rb") as file:
            while block := file.read(_READ_BYTES):
                for (pts,) in _PTS.iter_unpack(block):
                    yield pts_seconds(pts, self.time_base)


def pts_seconds(pts: int, time_base: Fraction) -> float:
    """Return `pts` in seconds as ffprobe does: from the container's own zero, rounded to 6 decimals.

    Computed in double precision, as there, so that both round alike.
    """
    tick_seconds = time_base.numerator / time_base.denominator
    return round(pts * tick_seconds, SECONDS_DECIMALS) + 0.0  # no negative zero
