"""What a container's headers declare, read with bounds before FFmpeg sees the file.

FFmpeg believes an MP4's sample counts and allocates memory for them: 660 bytes can make it take 3 GB. This
module adds the counts up first. Headers that are too damaged to read are left to FFmpeg, which has limits of
its own. Sources: ISO/IEC 14496-12 (boxes), the RIFF container of AVI, GIF89a 17 to 27.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.video.child.refusal import check_limit
from app.video.child.walkers.matroska import EBML_HEADER, MatroskaReader
from app.video.child.walkers.walker import Window
from app.video.protocol.limits import VideoLimits

BOX_HEAD_BYTES = 16  # of a box at most
_MAX_TOP_BOXES = 1_000_000  # fragments of a very long video
_MAX_INNER_BOXES = 200_000
_MAX_DEPTH = 8
_BLOCK_ENTRIES = 16384  # of a table, read at a time: tables of long videos take hundreds of megabytes
_TABLE_HEAD_BYTES = {b"stsz": 12, b"stz2": 12, b"stco": 8, b"co64": 8, b"stts": 8, b"ctts": 8, b"stsc": 8}
_STTS = np.dtype([("samples", ">u4"), ("ticks", ">u4")])
_CONTAINERS = frozenset((b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex"))
_OF_TAGS = frozenset((b"udta", b"meta", b"ilst"))
_ENCRYPTED_ENTRIES = frozenset((b"encv", b"drmi"))  # of Common Encryption, and of FairPlay before it
_IMAGE_BRANDS = frozenset((b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"))
_MAX_DESCRIPTIONS = 1000  # looked at, of a track
_FIRST_BOXES = frozenset(  # "jP  " begins Motion JPEG 2000
    b"jP  ,udta,ediw,junk,pict,prfl,ftyp,moov,mdat,free,skip,wide,pnot,styp,sidx,moof,uuid,meta".split(b",")
)

_GIF_SCREEN_BYTES = 13  # signature and screen descriptor
_GIF_HAS_COLOURS = 0x80
_GIF_IMAGE, _GIF_EXTENSION = 0x2C, 0x21
_GIF_IMAGE_HEAD_BYTES = 10  # with the kind of the block
_MAX_GIF_BLOCKS = 200_000  # a file with more blocks is no small still picture


class Box(NamedTuple):
    kind: bytes
    start: int  # of its payload, bytes into the file
    end: int


class Table(NamedTuple):
    """Where a table's entries are. The box ends at `end`, whatever `entries` says."""

    start: int  # bytes into the file
    end: int
    entries: int  # as declared


@dataclass(slots=True)
class Track:
    """What the limits and the index need to know of an MP4's track."""

    handler: bytes = b""
    samples: int = 0
    sample_bytes: int = 0  # of each; 0 if a table lists the sizes
    chunks: int = 0
    descriptions: int = 0
    is_encrypted: bool = False  # according to at least one of its descriptions
    tables: dict[bytes, Table] = field(default_factory=dict)  # by box name
    ticks: float = 0.0  # of all samples together
    is_tick_each: bool = False  # one entry of stts says that every sample lasts one tick
    ticks_a_second: int = 0
    declared_ticks: int = 0  # of the track, by its header
    edits: list[int] = field(default_factory=list)  # elst: durations in the movie's ticks

    def counted(self, movie_ticks_a_second: int) -> int:
        """Return how many index entries FFmpeg makes: one per sample and edit, or per chunk of raw sound."""
        if self.handler == b"soun" and self.is_tick_each:
            return self.chunks
        if len(self.edits) < 2:
            return self.samples
        shown = 0.0  # how many times the whole track is shown, at most
        for edit in self.edits:
            has_share = edit and self.ticks and movie_ticks_a_second  # an edit without a duration shows all
            share = edit / movie_ticks_a_second * self.ticks_a_second / self.ticks if has_share else 1.0
            shown += min(1.0, share)
        return round(shown * self.samples) + len(self.edits)


@dataclass(slots=True)
class Header:
    """What the headers of a file declare."""

    file_bytes: int
    declared_bytes: int | None = None  # length of the file, if the container declares it
    tracks: list[Track] = field(default_factory=list)
    fragment_samples: int = 0
    is_still_image: bool = False

    @property
    def sample_count(self) -> int:
        """Samples of an MP4, in all tracks. FFmpeg takes about 70 bytes for each when it opens the file."""
        return sum(track.samples for track in self.tracks) + self.fragment_samples

    @property
    def has_sample_tables(self) -> bool:
        """Whether this is an MP4 or MOV that lists all its samples in tables, which show what is missing."""
        return bool(self.tracks) and not self.fragment_samples

    @property
    def is_cut_short(self) -> bool:
        """Whether the container declares more bytes than the file has. Sample tables are more exact."""
        is_longer = self.declared_bytes is not None and self.declared_bytes > self.file_bytes
        return is_longer and not self.has_sample_tables


def read_header(descriptor: int, limits: VideoLimits) -> Header:
    """Return what the headers declare, without moving the descriptor's offset. Raises VideoRefused."""
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, 64, 0)
    header = Header(size)
    if start[4:8] in _FIRST_BOXES:
        _Mp4Reader(descriptor, header, limits).read()
    elif start[:4] == EBML_HEADER:
        matroska = MatroskaReader(descriptor, size)
        header.declared_bytes = matroska.end
        for number, _ in enumerate(matroska.tags(), 1):
            check_limit("max_tags", limits.max_tags, number)
    elif start[:4] == b"RIFF" and start[8:11] == b"AVI":
        header.declared_bytes = 8 + struct.unpack("<I", start[4:8])[0]
    elif start[:6] in (b"GIF87a", b"GIF89a"):
        header.is_still_image = _is_still_gif(descriptor)
    return header


def _is_still_gif(descriptor: int) -> bool:
    """Whether the GIF holds at most one picture."""
    window = Window(descriptor)
    images = 0
    with contextlib.suppress(IndexError):  # the file ends
        at = _GIF_SCREEN_BYTES + _colour_table_bytes(window.get(0, _GIF_SCREEN_BYTES)[10])
        for _ in range(_MAX_GIF_BLOCKS):
            kind = window.get(at, 1)[0]
            if kind == _GIF_IMAGE:
                images += 1
                if images == 2:
                    return False
                flags = window.get(at, _GIF_IMAGE_HEAD_BYTES)[9]
                at += _GIF_IMAGE_HEAD_BYTES + _colour_table_bytes(flags) + 1
            elif kind == _GIF_EXTENSION:
                at += 2
            else:  # the end, or damage
                break
            while length := window.get(at, 1)[0]:
                at += 1 + length
            at += 1
    return True


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _GIF_HAS_COLOURS else 0


def read_table(descriptor: int, table: Table, layout: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the entries of `table` that its box and the file hold, in blocks, as arrays of `layout`."""
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


def box_at(head: bytes, at: int, parent_end: int) -> Box | None:
    """Return the box at byte `at`, whose first 16 bytes are `head`; None if no box has such a head."""
    if len(head) < 8:
        return None
    size, kind = struct.unpack_from(">I4s", head)
    head_bytes = 8
    if size == 1 and len(head) >= BOX_HEAD_BYTES:
        size, head_bytes = int.from_bytes(head[8:16], "big"), BOX_HEAD_BYTES
    elif size == 0:
        size = parent_end - at
    return Box(kind, at + head_bytes, at + size) if size >= head_bytes else None


class _Mp4Reader:
    def __init__(self, descriptor: int, header: Header, limits: VideoLimits) -> None:
        self._descriptor = descriptor
        self._header = header
        self._limits = limits
        self._inner_boxes = 0
        self._tags = 0

    def read(self) -> None:
        tracks = self._header.tracks
        end = ticks_a_second = 0
        has_meta = has_movie = is_image = False
        for number, box in enumerate(self._boxes(0, self._header.file_bytes)):
            end = box.end
            has_meta |= box.kind == b"meta"
            if box.kind == b"ftyp":
                is_image |= os.pread(self._descriptor, 4, box.start) in _IMAGE_BRANDS
            check_limit("max_frames", _MAX_TOP_BOXES, number)
            if box.kind in (b"moov", b"moof"):
                has_movie = True
                check_limit("max_header_bytes", self._limits.max_header_bytes, box.end - box.start)
                for inner in self._descend(box):
                    if inner.kind == b"trak":
                        tracks.append(Track())
                        check_limit("max_streams", self._limits.max_streams, len(tracks))
                    elif inner.kind in _OF_TAGS:
                        self._count_tags(inner)
                    elif inner.kind == b"mvhd":
                        ticks_a_second, _ = self._time_scale_and_duration(inner)
                    elif inner.kind == b"trun":
                        self._header.fragment_samples += self._number(inner.start + 4)
                    elif tracks:
                        self._read_box(inner, tracks[-1])
                entries = sum(track.counted(ticks_a_second) for track in tracks)
                # A sample takes at least a byte, so a file cannot have more samples than bytes.
                limit = min(self._limits.max_frames, self._header.file_bytes)
                check_limit("max_frames", limit, entries + self._header.fragment_samples)
            elif box.kind in _OF_TAGS:
                self._count_tags(box)
        self._header.declared_bytes = end
        self._header.is_still_image = is_image or (has_meta and not has_movie)

    def _descend(self, parent: Box, depth: int = 1) -> Iterator[Box]:
        for box in self._boxes(parent.start, parent.end):
            self._inner_boxes += 1
            if self._inner_boxes > _MAX_INNER_BOXES and parent.kind != b"moof":
                limit = min(self._limits.max_streams, _MAX_INNER_BOXES)
                check_limit("max_streams", limit, self._inner_boxes)
            yield box
            if box.kind in _CONTAINERS and depth < _MAX_DEPTH:
                yield from self._descend(box, depth + 1)

    def _count_tags(self, parent: Box, depth: int = 1) -> None:
        start = parent.start
        if parent.kind == b"meta" and os.pread(self._descriptor, 4, start + 4) != b"hdlr":
            start += 4  # of MP4, with a version; QuickTime's has none
        for box in self._boxes(start, parent.end):
            if box.kind not in _OF_TAGS:
                self._tags += 1
                check_limit("max_tags", self._limits.max_tags, self._tags)
            elif depth < _MAX_DEPTH:
                self._count_tags(box, depth + 1)

    def _boxes(self, start: int, end: int) -> Iterator[Box]:
        at, end = start, min(end, self._header.file_bytes)
        while at + 8 <= end:
            box = box_at(os.pread(self._descriptor, BOX_HEAD_BYTES, at), at, end)
            if box is None:
                return
            yield box
            at = box.end

    def _read_box(self, box: Box, track: Track) -> None:
        if head_bytes := _TABLE_HEAD_BYTES.get(box.kind):
            start = box.start + head_bytes
            track.tables[box.kind] = Table(start, box.end, self._number(start - 4))
        match box.kind:
            case b"hdlr":
                track.handler = track.handler or os.pread(self._descriptor, 4, box.start + 8)
            case b"stsz" | b"stz2":
                track.samples = self._number(box.start + 8)
                track.sample_bytes = self._number(box.start + 4)
            case b"stco" | b"co64":
                track.chunks = self._number(box.start + 4)
            case b"stts":
                track.ticks = 0.0
                for block in read_table(self._descriptor, track.tables[b"stts"], _STTS):
                    track.ticks += float((block["samples"].astype(np.float64) * block["ticks"]).sum())
                    track.is_tick_each = track.tables[b"stts"].entries == 1 and int(block["ticks"][0]) == 1
            case b"mdhd":
                track.ticks_a_second, track.declared_ticks = self._time_scale_and_duration(box)
            case b"elst":
                layout = ">Qqhh" if self._number(box.start) >> 24 == 1 else ">Iihh"
                size = struct.calcsize(layout)
                count = min(self._number(box.start + 4), (box.end - box.start - 8) // size)
                check_limit("max_frames", self._limits.max_frames, count)
                data = os.pread(self._descriptor, max(count, 0) * size, box.start + 8)
                edits = struct.iter_unpack(layout, data[: len(data) // size * size])
                track.edits = [duration for duration, media_time, *_ in edits if media_time >= 0]
            case b"stsd":
                track.descriptions = self._number(box.start + 4)
                entries = islice(self._boxes(box.start + 8, box.end), _MAX_DESCRIPTIONS)
                track.is_encrypted |= any(entry.kind in _ENCRYPTED_ENTRIES for entry in entries)

    def _time_scale_and_duration(self, box: Box) -> tuple[int, int]:
        """Return the ticks per second and the duration in ticks that a box declares."""
        if self._number(box.start) >> 24 == 1:
            duration = self._number(box.start + 24) << 32 | self._number(box.start + 28)
            return self._number(box.start + 20), duration
        return self._number(box.start + 12), self._number(box.start + 16)

    def _number(self, at: int) -> int:
        data = os.pread(self._descriptor, 4, at)
        return int.from_bytes(data, "big") if len(data) == 4 else 0
