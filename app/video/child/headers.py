"""Before FFmpeg: what a container's headers declare, read with bounds.

FFmpeg believes an MP4's sample counts and takes memory for them: 660 bytes can make it take 3 GB. Here the
counts are added up first. What is damaged beyond reading is left to FFmpeg, which has limits of its own.
Sources: ISO/IEC 14496-12 (boxes), the RIFF container of AVI.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.video.child.gif_header import is_still_gif
from app.video.child.matroska_header import MatroskaReader
from app.video.protocol.limits import VideoLimits

_MAX_TOP_BOXES = 1_000_000  # fragments of a very long video
_MAX_INNER_BOXES = 200_000
_MAX_DEPTH = 8
_BLOCK_ENTRIES = 16384  # of a table, read at a time: tables of long videos take hundreds of megabytes
_STTS = np.dtype([("samples", ">u4"), ("ticks", ">u4")])
_CONTAINERS = frozenset((b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex"))
_OF_TAGS = frozenset((b"udta", b"meta", b"ilst"))
_ENCRYPTED_ENTRIES = frozenset((b"encv", b"drmi"))  # of Common Encryption, and of FairPlay before it
_IMAGE_BRANDS = frozenset((b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"))
_MAX_DESCRIPTIONS = 1000  # looked at, of a track
_FIRST_BOXES = frozenset(
    (
        b"jP  ",  # Motion JPEG 2000
        b"udta",
        b"ediw",
        b"junk",
        b"pict",
        b"prfl",
        b"ftyp",
        b"moov",
        b"mdat",
        b"free",
        b"skip",
        b"wide",
        b"pnot",
        b"styp",
        b"sidx",
        b"moof",
        b"uuid",
        b"meta",
    )
)


class HeaderOverLimit(Exception):
    """A header declares more than a limit allows. `name` is the limit's."""

    def __init__(self, name: str, limit: int, value: int) -> None:
        super().__init__(name, limit, value)
        self.name = name
        self.limit = limit
        self.value = value


class Box(NamedTuple):
    kind: bytes
    start: int  # of its payload, bytes into the file
    end: int
    depth: int


class Table(NamedTuple):
    """Where a table's entries lie; the box ends where it ends, whatever `entries` says."""

    start: int  # bytes into the file
    end: int
    entries: int  # as declared


@dataclass(slots=True)
class Track:
    """One track of an MP4, as far as it is counted."""

    handler: bytes = b""
    samples: int = 0
    sample_bytes: int = 0  # of each; 0 where a table tells
    chunks: int = 0
    descriptions: int = 0
    is_encrypted: bool = False  # by one of its descriptions at least
    tables: dict[bytes, Table] = field(default_factory=dict)  # by their boxes' names
    ticks: float = 0.0  # of all samples together
    is_tick_each: bool = False  # one entry of stts says that every sample lasts one tick
    ticks_a_second: int = 0
    declared_ticks: int = 0  # of the track, by its header
    edits: list[int] = field(default_factory=list)  # elst: durations in the movie's ticks

    def counted(self, movie_ticks_a_second: int) -> int:
        """Index entries that FFmpeg makes: one a sample and edit, or one a chunk of uncompressed sound."""
        if self.handler == b"soun" and self.is_tick_each:
            return self.chunks
        if len(self.edits) < 2:
            return self.samples
        shown = sum(self._share(edit, movie_ticks_a_second, self.ticks) for edit in self.edits)
        return round(shown * self.samples) + len(self.edits)

    def _share(self, edit: int, movie_ticks_a_second: int, ticks: float) -> float:
        """How much of the track an edit shows, at most, in [0, 1]. One without a duration shows all."""
        if not edit or not ticks or not movie_ticks_a_second:
            return 1.0
        return min(1.0, edit / movie_ticks_a_second * self.ticks_a_second / ticks)


@dataclass(slots=True)
class Header:
    """What the headers of a file declare."""

    file_bytes: int
    declared_bytes: int | None = None  # length of the whole, where the container tells it
    tracks: list[Track] = field(default_factory=list)
    fragment_samples: int = 0
    is_still_image: bool = False

    @property
    def sample_count(self) -> int:
        """Of an MP4, over all tracks. FFmpeg takes some 70 bytes for each as soon as it opens the file."""
        return sum(track.samples for track in self.tracks) + self.fragment_samples

    @property
    def has_sample_tables(self) -> bool:
        """Whether it is an MP4 or MOV that lists all its samples in tables: they tell what is missing."""
        return bool(self.tracks) and not self.fragment_samples

    @property
    def is_cut_short(self) -> bool:
        """Whether the container's own length passes the file's end. Where there are tables, they decide."""
        is_longer = self.declared_bytes is not None and self.declared_bytes > self.file_bytes
        return is_longer and not self.has_sample_tables


def read_header(descriptor: int, limits: VideoLimits) -> Header:
    """Return what is declared. Raises HeaderOverLimit. The descriptor's offset stays as it is."""
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, 64, 0)
    header = Header(size)
    if start[4:8] in _FIRST_BOXES:
        _Mp4Reader(descriptor, header, limits).read()
    elif start[:4] == b"\x1aE\xdf\xa3":
        matroska = MatroskaReader(descriptor, size)
        header.declared_bytes = matroska.end
        matroska.count_tags(_Counter("max_tags", limits.max_tags).add)
    elif start[:4] == b"RIFF" and start[8:11] == b"AVI":
        header.declared_bytes = 8 + struct.unpack("<I", start[4:8])[0]
    elif start[:6] in (b"GIF87a", b"GIF89a"):
        header.is_still_image = is_still_gif(descriptor)
    return header


def read_table(descriptor: int, table: Table, layout: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the entries of `table` that are in its box and in the file, in blocks, as arrays of `layout`."""
    left = min(table.entries, (table.end - table.start) // layout.itemsize)
    at = table.start
    while left > 0:
        data = os.pread(descriptor, min(left, _BLOCK_ENTRIES) * layout.itemsize, at)
        block = np.frombuffer(data, dtype=layout, count=len(data) // layout.itemsize)
        if not len(block):
            return
        yield block
        left -= len(block)
        at += len(block) * layout.itemsize


class _Counter:
    """Counts to a limit, and raises HeaderOverLimit beyond it."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._value = 0

    def add(self) -> None:
        self._value += 1
        if self._value > self._limit:
            raise HeaderOverLimit(self._name, self._limit, self._value)


class _Mp4Reader:
    def __init__(self, descriptor: int, header: Header, limits: VideoLimits) -> None:
        self._descriptor = descriptor
        self._header = header
        self._limits = limits
        self._has_movie = False
        self._ticks_a_second = 0
        self._inner_boxes = 0
        self._tags = _Counter("max_tags", limits.max_tags)

    def read(self) -> None:
        end = 0
        has_meta = is_image = False
        for number, box in enumerate(self._boxes(0, self._header.file_bytes, 0)):
            end = box.end
            has_meta |= box.kind == b"meta"
            if box.kind == b"ftyp":
                is_image |= os.pread(self._descriptor, 4, box.start) in _IMAGE_BRANDS
            if number > _MAX_TOP_BOXES:
                raise HeaderOverLimit("max_frames", _MAX_TOP_BOXES, number)
            if box.kind in (b"moov", b"moof"):
                self._read_movie(box)
            elif box.kind in _OF_TAGS:
                self._count_tags(box)
        self._header.declared_bytes = end
        self._header.is_still_image = is_image or (has_meta and not self._has_movie)

    def _read_movie(self, movie: Box) -> None:
        self._has_movie = True
        if movie.end - movie.start > self._limits.max_header_bytes:
            raise HeaderOverLimit("max_header_bytes", self._limits.max_header_bytes, movie.end - movie.start)
        for box in self._descend(movie):
            if box.kind == b"trak":
                self._header.tracks.append(Track())
                self._check("max_streams", self._limits.max_streams, len(self._header.tracks))
            elif box.kind in _OF_TAGS:
                self._count_tags(box)
            elif box.kind == b"mvhd":
                self._ticks_a_second = self._time_scale(box)
            elif box.kind == b"trun":
                self._header.fragment_samples += self._number(box.start + 4)
            elif self._header.tracks:
                self._read_table(box, self._header.tracks[-1])
        self._check_samples()

    def _descend(self, parent: Box) -> Iterator[Box]:
        for box in self._boxes(parent.start, min(parent.end, self._header.file_bytes), parent.depth + 1):
            self._inner_boxes += 1
            if self._inner_boxes > _MAX_INNER_BOXES and parent.kind != b"moof":
                raise HeaderOverLimit("max_streams", self._limits.max_streams, self._inner_boxes)
            yield box
            if box.kind in _CONTAINERS and box.depth < _MAX_DEPTH:
                yield from self._descend(box)

    def _count_tags(self, parent: Box) -> None:
        start = parent.start
        if parent.kind == b"meta" and os.pread(self._descriptor, 4, start + 4) != b"hdlr":
            start += 4  # of MP4, with a version; QuickTime's has none
        for box in self._boxes(start, min(parent.end, self._header.file_bytes), parent.depth + 1):
            if box.kind not in _OF_TAGS:
                self._tags.add()
            elif box.depth < _MAX_DEPTH:
                self._count_tags(box)

    def _boxes(self, start: int, end: int, depth: int) -> Iterator[Box]:
        at = start
        while at + 8 <= end:
            head = os.pread(self._descriptor, 16, at)
            if len(head) < 8:
                return
            size, kind = struct.unpack(">I4s", head[:8])
            skip = 8
            if size == 1 and len(head) == 16:
                size, skip = struct.unpack(">Q", head[8:])[0], 16
            elif size == 0:
                size = end - at
            if size < skip:
                return
            yield Box(kind, at + skip, at + size, depth)
            at += size

    def _read_table(self, box: Box, track: Track) -> None:
        match box.kind:
            case b"hdlr":
                if not track.handler:  # MOV has one more, of the data, after it
                    track.handler = os.pread(self._descriptor, 4, box.start + 8)
            case b"stsz" | b"stz2":
                track.samples = self._number(box.start + 8)
                track.sample_bytes = self._number(box.start + 4)
                self._note_table(box, track, head_bytes=12)
            case b"stco" | b"co64":
                track.chunks = self._number(box.start + 4)
                self._note_table(box, track)
            case b"stts":
                self._note_table(box, track)
                self._read_timing(track)
            case b"ctts" | b"stsc":
                self._note_table(box, track)
            case b"mdhd":
                track.ticks_a_second = self._time_scale(box)
                track.declared_ticks = self._duration(box)
            case b"elst":
                track.edits = self._edits(box)
            case b"stsd":
                track.descriptions = self._number(box.start + 4)
                entries = islice(self._boxes(box.start + 8, box.end, box.depth + 1), _MAX_DESCRIPTIONS)
                track.is_encrypted |= any(entry.kind in _ENCRYPTED_ENTRIES for entry in entries)

    def _note_table(self, box: Box, track: Track, *, head_bytes: int = 8) -> None:
        table = Table(box.start + head_bytes, box.end, self._number(box.start + head_bytes - 4))
        track.tables[box.kind] = table

    def _read_timing(self, track: Track) -> None:
        table = track.tables[b"stts"]
        track.ticks = 0.0
        for block in read_table(self._descriptor, table, _STTS):
            track.ticks += float((block["samples"].astype(np.float64) * block["ticks"]).sum())
            track.is_tick_each = table.entries == 1 and int(block["ticks"][0]) == 1

    def _time_scale(self, box: Box) -> int:
        version = self._number(box.start) >> 24
        return self._number(box.start + (20 if version == 1 else 12))

    def _duration(self, box: Box) -> int:
        """What stands behind the time scale, in its ticks."""
        if self._number(box.start) >> 24 == 1:
            return self._number(box.start + 24) << 32 | self._number(box.start + 28)
        return self._number(box.start + 16)

    def _edits(self, box: Box) -> list[int]:
        layout = ">Qqhh" if self._number(box.start) >> 24 == 1 else ">Iihh"
        size = struct.calcsize(layout)
        count = min(self._number(box.start + 4), (box.end - box.start - 8) // size)
        self._check("max_frames", self._limits.max_frames, count)
        data = os.pread(self._descriptor, max(count, 0) * size, box.start + 8)
        entries = struct.iter_unpack(layout, data[: len(data) // size * size])
        return [duration for duration, media_time, *_ in entries if media_time >= 0]

    def _number(self, at: int) -> int:
        data = os.pread(self._descriptor, 4, at)
        return int.from_bytes(data, "big") if len(data) == 4 else 0

    def _check_samples(self) -> None:
        """A sample takes a byte at least: more samples than bytes are a lie, whatever the limit."""
        total = (
            sum(track.counted(self._ticks_a_second) for track in self._header.tracks)
            + self._header.fragment_samples
        )
        self._check("max_frames", min(self._limits.max_frames, self._header.file_bytes), total)

    def _check(self, name: str, limit: int, value: int) -> None:
        if value > limit:
            raise HeaderOverLimit(name, limit, value)
