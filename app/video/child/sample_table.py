"""Where the samples of one MP4 track are and when they are shown, by its own tables.

FFmpeg's index has positions, sizes and decoding times; the composition offsets from decoding to presentation
are only in the tables. They are read in blocks, so memory does not grow with the video.
Source: ISO/IEC 14496-12, 8.6.1.3 (ctts), 8.7.3 to 8.7.5 (stsz, stsc, stco, co64).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, pairwise, repeat
from typing import Any, NamedTuple

import numpy as np

from app.video.child.headers import Header, Table, Track, read_table

_UINT_32, _UINT_64 = np.dtype(">u4"), np.dtype(">u8")
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
    """Whether the composition offsets, if any, cover exactly all samples. FFmpeg repairs others."""
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


def disagreement(descriptor: int, header: Header, stream: int, shown: int) -> tuple[int | None, str] | None:
    """Return which table of an MP4 cannot be right, if its stream has more samples than the `shown` frames.

    That is its position in bytes into the file, and the reason.

    FFmpeg ignores all samples from the first one of an impossible size on, and an edit list hides samples
    with impossible times. None of 28 real files with hidden samples has such tables.
    """
    track = header.tracks[stream] if header.has_sample_tables and stream < len(header.tracks) else None
    if track is None or 0 < track.samples <= shown:
        return None
    if not track.samples:
        return None, "samples, and no table of them where it belongs"
    sizes, offsets, durations = (track.tables.get(name) for name in (b"stsz", b"ctts", b"stts"))
    if sizes is not None and not track.sample_bytes:
        blocks = read_table(descriptor, sizes, _UINT_32)
        if any(int(block.max()) > header.file_bytes for block in blocks):
            return sizes.start, "a sample larger than the file"
    if offsets is not None and not _composes_every_sample(descriptor, track):
        return offsets.start, "composition offsets that are not those of all samples"
    if durations is not None and abs(track.ticks - track.declared_ticks) > track.ticks / track.samples:
        return durations.start, "samples whose durations do not add up to the track's"
    return None


def read_samples(descriptor: int, track: Track) -> Iterator[Sample]:
    """Yield the samples in decoding order, as far as the tables agree with each other."""
    tables = track.tables
    sizes: Iterator[int] = repeat(track.sample_bytes, track.samples)
    if not track.sample_bytes:
        sizes = _entries(descriptor, tables[b"stsz"], _UINT_32)
    offsets: Iterator[int] = repeat(0, track.samples)
    if b"ctts" in tables:
        compositions = _entries(descriptor, tables[b"ctts"], _COMPOSITION)
        offsets = chain.from_iterable(repeat(ticks, samples) for samples, ticks in compositions)
    if b"co64" in tables:
        positions = _entries(descriptor, tables[b"co64"], _UINT_64)
    else:
        positions = _entries(descriptor, tables[b"stco"], _UINT_32)
    runs = chain(_entries(descriptor, tables[b"stsc"], _RUN), [(track.chunks + 1, 0, 0)])
    counts = chain.from_iterable(
        repeat(samples, following - first) for (first, samples, _), (following, _, _) in pairwise(runs)
    )
    for position, count in zip(positions, counts, strict=False):
        at = position
        for size, offset in zip(islice(sizes, count), offsets, strict=False):
            yield Sample(at, size, offset)
            at += size


def _entries(descriptor: int, table: Table, layout: np.dtype[Any]) -> Iterator[Any]:
    for block in read_table(descriptor, table, layout):
        yield from block.tolist()
