"""A valid video of any size that takes next to no disk: the chunks of an ordinary MP4, moved far apart.

The chunk offsets (``co64``) tell where the samples lie; what lies between is a hole in the file. Players,
and we, must come to the same frames as in the small file. Source: ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

SAMPLES_A_CHUNK = 25
_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_LONG_HEAD_BYTES = 16  # of a box whose size does not fit into 32 bits


class Box(NamedTuple):
    kind: bytes
    payload: bytes


@dataclass(frozen=True)
class Sample:
    offset: int
    size: int


def stretch_video(source: Path, destination: Path, *, size_bytes: int) -> None:
    """Write `source`'s frames as an MP4 of `size_bytes`, the last chunk at its end, holes between chunks.

    `source` is an MP4 with one track, as ffmpeg writes it. ValueError if it has another form, or if
    `size_bytes` is less than its frames need.
    """
    boxes = {box.kind: box for box in _boxes(source.read_bytes())}
    samples = _samples(boxes[b"moov"])
    chunks = [samples[first : first + SAMPLES_A_CHUNK] for first in range(0, len(samples), SAMPLES_A_CHUNK)]
    head = _box(boxes[b"ftyp"])
    media_at = len(head) + len(_box(_with_chunks(boxes[b"moov"], [0] * len(chunks))))
    offsets = _spread(media_at + _LONG_HEAD_BYTES, [_size(chunk) for chunk in chunks], size_bytes)
    with source.open("rb") as frames, destination.open("wb") as out:
        out.write(head + _box(_with_chunks(boxes[b"moov"], offsets)))
        out.write(struct.pack(">I4sQ", 1, b"mdat", size_bytes - media_at))
        for chunk, offset in zip(chunks, offsets, strict=True):
            out.seek(offset)
            for sample in chunk:
                frames.seek(sample.offset)
                out.write(frames.read(sample.size))
        out.truncate(size_bytes)


def _spread(first: int, sizes: list[int], end: int) -> list[int]:
    """Where chunks of `sizes` bytes begin, evenly apart from `first` to `end`."""
    room = end - first - sum(sizes)
    if room < 0:
        raise ValueError(f"the frames alone take {end - room} bytes")
    gap = room // max(1, len(sizes) - 1)
    return [first + before + number * gap for number, before in enumerate(accumulate(sizes[:-1], initial=0))]


def _size(chunk: list[Sample]) -> int:
    return sum(sample.size for sample in chunk)


def _boxes(data: bytes) -> Iterator[Box]:
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            raise ValueError("a box of another form")
        yield Box(kind, data[at + 8 : at + size])
        at += size


def _box(box: Box) -> bytes:
    return struct.pack(">I4s", 8 + len(box.payload), box.kind) + box.payload


def _change(box: Box, change: Callable[[Box], Box]) -> Box:
    """`box` with `change` made to every box in it that has no others."""
    if box.kind not in _PARENTS:
        return change(box)
    return Box(box.kind, b"".join(_box(_change(inner, change)) for inner in _boxes(box.payload)))


def _with_chunks(movie: Box, offsets: list[int]) -> Box:
    """`movie` with chunks of SAMPLES_A_CHUNK samples at `offsets`; the last may have fewer."""
    samples = len(_samples(movie))
    short = samples % SAMPLES_A_CHUNK
    runs = [(1, SAMPLES_A_CHUNK, 1)] if len(offsets) > bool(short) else []
    runs += [(len(offsets), short, 1)] if short else []
    new = {
        b"stsc": Box(b"stsc", _table([value for run in runs for value in run], "I", len(runs))),
        b"stco": Box(b"co64", _table(offsets, "Q", len(offsets))),
    }
    return _change(movie, lambda box: new.get({b"co64": b"stco"}.get(box.kind, box.kind), box))


def _table(values: list[int], form: str, count: int) -> bytes:
    return struct.pack(f">II{len(values)}{form}", 0, count, *values)


def _samples(movie: Box) -> list[Sample]:
    """Where each sample lies, in decoding order."""
    tables: dict[bytes, bytes] = {}

    def note(box: Box) -> Box:
        tables[box.kind] = box.payload
        return box

    _change(movie, note)
    if list(_tracks(movie)) != [b"trak"]:
        raise ValueError("more than one track")
    kind, width = (b"co64", 8) if b"co64" in tables else (b"stco", 4)
    chunks = [int.from_bytes(entry) for entry in _entries(tables[kind], width)]
    runs = [struct.unpack(">III", entry) for entry in _entries(tables[b"stsc"], 12)]
    fixed, count = struct.unpack_from(">II", tables[b"stsz"], 4)
    sizes = [fixed] * count if fixed else [int.from_bytes(e) for e in _entries(tables[b"stsz"][4:], 4)]
    return [*_place(chunks, runs, iter(sizes))]


def _tracks(movie: Box) -> Iterator[bytes]:
    return (box.kind for box in _boxes(movie.payload) if box.kind == b"trak")


def _entries(table: bytes, width: int) -> Iterator[bytes]:
    """The entries of a table that begins with version, flags and their number."""
    count = int.from_bytes(table[4:8])
    return (table[8 + number * width : 8 + (number + 1) * width] for number in range(count))


def _place(chunks: list[int], runs: list[tuple[int, ...]], sizes: Iterator[int]) -> Iterator[Sample]:
    ends = [run[0] for run in runs[1:]] + [len(chunks) + 1]
    for (first, count, _), end in zip(runs, ends, strict=True):
        for chunk in range(first, end):
            at = chunks[chunk - 1]
            for size in (next(sizes) for _ in range(count)):
                yield Sample(at, size)
                at += size
