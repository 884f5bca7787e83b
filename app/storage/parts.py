"""Parts: the finished segments of a job, one file each. A segment is done if its part reads back whole.

    body    the records of its frames, joined by ",\\n"; nothing before, nothing after
    pts     the time stamp of each record's frame, in the records' order: int64, little-endian
    footer  one JSON object: what the segment's run found (counts, undecodable stretches)
    tail    fixed size: lengths of the three, CRC-32 of all of them, a magic number

Body and pts are separate sections so that the kernel can join those of all parts without parsing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from app.storage.durable import atomic_write

SEPARATOR = b",\n"

_TAIL = struct.Struct("<QQQI8s")
_MAGIC = b"FBpart02"
_READ_BYTES = 1024 * 1024


class TornPart(Exception):
    """The file is not a whole part: it was cut short or altered, or is something else."""


@dataclass(frozen=True, slots=True)
class Section:
    """A run of bytes in a part's file."""

    path: Path
    offset: int
    size_bytes: int

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of at most 1 MiB."""
        remaining = self.size_bytes
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while remaining:
                block = file.read(min(_READ_BYTES, remaining))
                if not block:
                    raise TornPart(self.path.name)
                remaining -= len(block)
                yield block


@dataclass(frozen=True, slots=True)
class Part:
    """A whole part on disk."""

    path: Path
    body_bytes: int
    pts_bytes: int
    footer: dict[str, Any]

    @property
    def body(self) -> Section:
        return Section(self.path, 0, self.body_bytes)

    @property
    def pts(self) -> Section:
        return Section(self.path, self.body_bytes, self.pts_bytes)


class PartWriter:
    """Writes the records of one segment in order; see `PartStore.write`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._body_bytes = 0
        self._pts = bytearray()  # of some hundred frames, seldom of a few thousand
        self._crc = 0
        self.is_finished = False

    def append(self, records: Sequence[bytes], pts: Sequence[int]) -> None:
        """Add the records of the next frames, JSON values without surrounding space, and their time stamps.

        ValueError if there are not as many time stamps as records.
        """
        if len(records) != len(pts):
            raise ValueError(f"{len(records)} records with {len(pts)} time stamps")
        if records:
            body = (SEPARATOR if self._body_bytes else b"") + SEPARATOR.join(records)
            self._put(body)
            self._body_bytes += len(body)
            self._pts += struct.pack(f"<{len(pts)}q", *pts)

    def finish(self, footer: dict[str, Any]) -> None:
        """Complete the part; call once, last."""
        encoded = orjson.dumps(footer)
        self._put(self._pts)
        self._put(encoded)
        self._file.write(_TAIL.pack(self._body_bytes, len(self._pts), len(encoded), self._crc, _MAGIC))
        self.is_finished = True

    def _put(self, data: bytes | bytearray) -> None:
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)


class PartStore:
    """The parts of one job, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> None:
        """Create the folder if it is missing and remove what writers left unfinished."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink()

    @contextmanager
    def write(self, number: int) -> Iterator[PartWriter]:
        """Yield a writer; part `number` is whole once the block has ended, or absent.

        A power failure may undo a part that is seconds old: its segment then runs again.
        ValueError if the block ends without `PartWriter.finish`.
        """
        with atomic_write(self._path(number), durable_name=False) as file:
            writer = PartWriter(file)
            yield writer
            if not writer.is_finished:
                raise ValueError("the part was not finished")

    def read(self, number: int) -> Part | None:
        """Return part `number`, its checksum verified; None if it is absent. Raises TornPart."""
        path = self._path(number)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            size = file.seek(0, 2)
            if size < _TAIL.size:
                raise TornPart(path.name)
            file.seek(size - _TAIL.size)
            body_bytes, pts_bytes, footer_bytes, expected_crc, magic = _TAIL.unpack(file.read(_TAIL.size))
            if magic != _MAGIC or body_bytes + pts_bytes + footer_bytes + _TAIL.size != size:
                raise TornPart(path.name)
            file.seek(0)
            crc, remaining = 0, body_bytes + pts_bytes
            while remaining:
                block = file.read(min(_READ_BYTES, remaining))
                crc = zlib.crc32(block, crc)
                remaining -= len(block)
            footer = file.read(footer_bytes)
        if zlib.crc32(footer, crc) != expected_crc:
            raise TornPart(path.name)
        return Part(path, body_bytes, pts_bytes, orjson.loads(footer))

    def trace(self) -> str:
        """Return a text that changes with each part that is made or replaced; empty if there is none.

        Takes microseconds a part: parts are not read.
        """
        times = []
        for path in self._folder.glob("*.part"):
            with suppress(FileNotFoundError):  # its job ends meanwhile
                times.append(path.stat().st_mtime_ns)
        return f"{len(times)} {max(times)}" if times else ""

    def remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.part"
