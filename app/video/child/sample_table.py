"""Where the samples of one MP4 track lie and when they are shown, by its own tables.

FFmpeg's index gives positions, sizes and decoding times; the composition offsets that lead from decoding to
presentation are in the tables alone. They are read in blocks: nothing grows with a video.
Source: ISO/IEC 14496-12, 8.6.1.3 (ctts), 8.7.3 to 8.7.5 (stsz, stsc, stco, co64).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, pairwise, repeat
from typing import NamedTuple

import numpy as np

from app.video.child.headers import Header, Table, Track, read_table

_SIZE = np.dtype([("bytes", ">u4")])
_OFFSET_32 = np.dtype([("position", ">u4")])
_OFFSET_64 = np.dtype([("position", ">u8")])
_RUN = np.dtype([("first_chunk", ">u4"), ("samples", ">u4"), ("description", ">u4")])
_COMPOSITION = np.dtype([("samples", ">u4"), ("ticks", ">i4")])
_WILD_TICKS = 1 << 28  # FFmpeg drops a table with such offsets


class Disagreement(NamedTuple):
    """Tables that cannot all be right."""

    position: int | None  # of one of them, bytes into the file
    reason: str


class Sample(NamedTuple):
    position: int  # bytes into the file
    size_bytes: int
    offset_ticks: int  # from decoding to composition


def has_plain_tables(descriptor: int, track: Track) -> bool:
    """Whether this is a picture track with one sample description and the usual tables, none of them odd."""
    has_positions = (b"stco" in track.tables) != (b"co64" in track.tables)
    return (
        track.handler == b"vide"
        and track.descriptions == 1
        and has_positions
        and {b"stsz", b"stsc"} <= track.tables.keys()
        and _composes_every_sample(descriptor, track)
    )


def _composes_every_sample(descriptor: int, track: Track) -> bool:
    """Whether the composition offsets, if there are any, are those of all samples. FFmpeg mends others."""
    table = track.tables.get(b"ctts")
    if table is None:
        return True
    samples = 0
    for block in read_table(descriptor, table, _COMPOSITION):
        counts = block["samples"].astype(np.int64)
        is_wild = int(np.abs(block["ticks"].astype(np.int64)).max()) >= _WILD_TICKS
        if is_wild or int(counts.min()) == 0 or int(counts.max()) > track.samples:
            return False
        samples += int(counts.sum())
    return samples == track.samples


def disagreement(descriptor: int, header: Header, stream: int, shown: int) -> Disagreement | None:
    """Return why an MP4's tables cannot be right, where its stream shows `shown` frames and has more samples.

    FFmpeg takes the samples before one of an impossible size for all there are, and an edit list hides those
    of impossible times. Of 28 real files with hidden samples none is so.
    """
    track = header.tracks[stream] if header.has_sample_tables and stream < len(header.tracks) else None
    if track is None or 0 < track.samples <= shown:
        return None
    if not track.samples:
        return Disagreement(None, "samples, and no table of them where it belongs")
    sizes, offsets, durations = (track.tables.get(name) for name in (b"stsz", b"ctts", b"stts"))
    if sizes is not None and not track.sample_bytes:
        blocks = read_table(descriptor, sizes, _SIZE)
        if any(int(block["bytes"].max()) > header.file_bytes for block in blocks):
            return Disagreement(sizes.start, "a sample larger than the file")
    if offsets is not None and not _composes_every_sample(descriptor, track):
        return Disagreement(offsets.start, "composition offsets that are not those of all samples")
    if durations is not None and abs(track.ticks - track.declared_ticks) > track.ticks / track.samples:
        return Disagreement(durations.start, "samples whose durations do not add up to the track's")
    return None


def read_samples(descriptor: int, track: Track) -> Iterator[Sample]:
    """Yield the samples in decoding order, as far as the tables agree with each other."""
    sizes = _sizes(descriptor, track)
    offsets = _composition_offsets(descriptor, track)
    chunks = zip(_chunk_positions(descriptor, track), _chunk_samples(descriptor, track), strict=False)
    for position, count in chunks:
        at = position
        for size, offset in zip(islice(sizes, count), offsets, strict=False):
            yield Sample(at, size, offset)
            at += size


def _sizes(descriptor: int, track: Track) -> Iterator[int]:
    if track.sample_bytes:
        yield from repeat(track.sample_bytes, track.samples)
        return
    for block in read_table(descriptor, track.tables[b"stsz"], _SIZE):
        yield from block["bytes"].tolist()


def _chunk_positions(descriptor: int, track: Track) -> Iterator[int]:
    is_wide = b"co64" in track.tables
    table = track.tables[b"co64" if is_wide else b"stco"]
    for block in read_table(descriptor, table, _OFFSET_64 if is_wide else _OFFSET_32):
        yield from block["position"].tolist()


def _chunk_samples(descriptor: int, track: Track) -> Iterator[int]:
    """How many samples each chunk holds."""
    runs = _entries(descriptor, track.tables[b"stsc"], _RUN)
    after_the_last = (track.chunks + 1, 0, 0)
    for (first, samples, _), (following, _, _) in pairwise(chain(runs, [after_the_last])):
        yield from repeat(samples, following - first)


def _composition_offsets(descriptor: int, track: Track) -> Iterator[int]:
    table = track.tables.get(b"ctts")
    if table is None:
        yield from repeat(0, track.samples)
        return
    for samples, ticks in _entries(descriptor, table, _COMPOSITION):
        yield from repeat(ticks, samples)


def _entries(descriptor: int, table: Table, layout: np.dtype[np.void]) -> Iterator[tuple[int, ...]]:
    for block in read_table(descriptor, table, layout):
        yield from block.tolist()
