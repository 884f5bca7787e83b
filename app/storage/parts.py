"""Parts: the finished segments of a job, one file each. A part that reads back whole is its completion.

    body    the records of its frames, joined by ",\\n"; nothing before, nothing after
    footer  one JSON object: what the segment's run found (counts, undecodable stretches)
    tail    fixed size: lengths of body and footer, CRC-32 of both, a magic number

The body comes first so that the kernel can join bodies into a document without anyone parsing them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from app.storage.durable import atomic_write, make_folder

SEPARATOR = b",\n"

_TAIL = struct.Struct("<QQI8s")
_MAGIC = b"FBpart01"
_READ_BYTES = 1024 * 1024


class TornPart(Exception):
    """The file is no whole part: cut short, altered, or something else."""


@dataclass(frozen=True, slots=True)
class Part:
    """A whole part on disk."""

    path: Path
    body_bytes: int
    footer: dict[str, Any]

    def body(self) -> Iterator[bytes]:
        """Yield the body in blocks of at most 1 MiB."""
        remaining = self.body_bytes
        with self.path.open("rb") as file:
            while remaining:
                block = file.read(min(_READ_BYTES, remaining))
                if not block:
                    raise TornPart(self.path.name)
                remaining -= len(block)
                yield block


class PartWriter:
    """Takes the records of one segment in order; see `PartStore.write`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._body_bytes = 0
        self._crc = 0
        self._is_finished = False

    def append(self, records: list[bytes]) -> None:
        """Add the records of the next frames; JSON values without surrounding space."""
        if records:
            body = SEPARATOR.join(records)
            self._put(SEPARATOR + body if self._body_bytes else body)

    def finish(self, footer: dict[str, Any]) -> None:
        """Complete the part; call once, last."""
        encoded = orjson.dumps(footer)
        self._file.write(encoded)
        crc = zlib.crc32(encoded, self._crc)
        self._file.write(_TAIL.pack(self._body_bytes, len(encoded), crc, _MAGIC))
        self._is_finished = True

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._body_bytes += len(data)
        self._crc = zlib.crc32(data, self._crc)


class PartStore:
    """The parts of one job, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> None:
        """Make the folder if it is missing and drop what writers left unfinished."""
        make_folder(self._folder)
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink()

    @contextmanager
    def write(self, number: int) -> Iterator[PartWriter]:
        """Yield a writer; part `number` is whole and durable once the block has ended, or absent.

        ValueError if the block ends without `PartWriter.finish`.
        """
        with atomic_write(self._path(number)) as file:
            writer = PartWriter(file)
            yield writer
            if not writer.is_finished:
                raise ValueError("the part was not finished")

    def read(self, number: int) -> Part | None:
        """Return part `number`, its checksum verified; None if it is absent. Raises TornPart."""
        try:
            with self._path(number).open("rb") as file:
                return _verified(self._path(number), file)
        except FileNotFoundError:
            return None

    def trace(self) -> str:
        """A text that differs once a part has been made, also in place of another; empty while none is.

        Takes microseconds a part: they are not read.
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


def _verified(path: Path, file: BinaryIO) -> Part:
    size = file.seek(0, 2)
    if size < _TAIL.size:
        raise TornPart(path.name)
    file.seek(size - _TAIL.size)
    body_bytes, footer_bytes, expected_crc, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != _MAGIC or body_bytes + footer_bytes + _TAIL.size != size:
        raise TornPart(path.name)
    file.seek(0)
    crc, remaining = 0, body_bytes
    while remaining:
        block = file.read(min(_READ_BYTES, remaining))
        crc = zlib.crc32(block, crc)
        remaining -= len(block)
    footer = file.read(footer_bytes)
    if zlib.crc32(footer, crc) != expected_crc:
        raise TornPart(path.name)
    return Part(path, body_bytes, orjson.loads(footer))
