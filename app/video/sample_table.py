"""In the child: where the samples of one MP4 track lie and when they are shown, by its own tables.

FFmpeg's index gives positions, sizes and decoding times; the composition offsets that lead from decoding to
presentation are in the tables alone. They are read in blocks: nothing grows with a video.
Source: ISO/IEC 14496-12, 8.6.1.3 (ctts), 8.7.3 to 8.7.5 (stsz, stsc, stco, co64).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, pairwise, repeat
from typing import NamedTuple

import numpy as np

from app.video.headers import Table, Track, read_table

_SIZE = np.dtype([("bytes", ">u4")])
_OFFSET_32 = np.dtype([("position", ">u4")])
_OFFSET_64 = np.dtype([("position", ">u8")])
_RUN = np.dtype([("first_chunk", ">u4"), ("samples", ">u4"), ("description", ">u4")])
_COMPOSITION = np.dtype([("samples", ">u4"), ("ticks", ">i4")])
_WILD_TICKS = 1 << 28  # FFmpeg drops a table with such offsets


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
