"""Headers that lie about their size are found out before FFmpeg takes memory for them."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.video.child.headers import Header, read_header
from app.video.child.refusal import VideoRefused
from app.video.protocol.limits import VideoLimits

FTYP = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, *numbers: int) -> bytes:
    return box(kind, bytes(4), b"".join(struct.pack(">I", number) for number in numbers))


def track(
    samples: int, *, handler: bytes = b"vide", timing: tuple[int, int] | None = None, chunks: int = 1
) -> bytes:
    count, ticks = timing or (samples, 512)
    tables = box(
        b"stbl",
        full(b"stts", 1, count, ticks),
        full(b"stsz", 100, samples),
        full(b"stco", chunks, *[0] * min(chunks, 10)),
    )
    return box(b"trak", box(b"mdia", box(b"hdlr", bytes(8), handler, bytes(12)), box(b"minf", tables)))


class Reader:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "file"

    def __call__(self, data: bytes, limits: VideoLimits | None = None) -> Header:
        self._path.write_bytes(data)
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            return read_header(descriptor, limits or VideoLimits())
        finally:
            os.close(descriptor)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("headers"))


def test_an_honest_movie_passes(read: Reader) -> None:
    header = read(FTYP + box(b"moov", track(50)) + box(b"mdat", bytes(5000)))
    assert [one.samples for one in header.tracks] == [50]
    assert not header.is_cut_short


@pytest.mark.parametrize("samples", [10_000, 85_000_000, 2**32 - 1])
def test_more_samples_than_bytes_are_refused(read: Reader, samples: int) -> None:
    with pytest.raises(VideoRefused, match="max_frames"):
        read(FTYP + box(b"moov", track(samples)) + box(b"mdat", bytes(100)))


def test_samples_add_up_over_tracks_and_fragments(read: Reader) -> None:
    limits = VideoLimits(max_frames=1000)
    room = box(b"mdat", bytes(5000))
    with pytest.raises(VideoRefused, match="max_frames"):
        read(FTYP + box(b"moov", track(600), track(600)) + room, limits)
    fragment = box(b"moof", box(b"traf", full(b"trun", 600)))
    assert read(FTYP + box(b"moov", track(0)) + fragment + room, limits).fragment_samples == 600
    with pytest.raises(VideoRefused, match="max_frames"):
        read(FTYP + box(b"moov", track(0)) + fragment + fragment + room, limits)


@pytest.mark.parametrize(("seconds", "is_bomb"), [(0, True), (100, True), (1, False)])
def test_edits_that_show_a_track_again_and_again_are_counted(
    read: Reader, seconds: int, is_bomb: bool
) -> None:
    """Of 1000 samples over 100 s, 100 edits show all each time, or ten frames each."""
    edit = struct.pack(">IiHH", seconds * 1000, 0, 1, 0)
    edits = box(b"edts", box(b"elst", bytes(4), struct.pack(">I", 100), edit * 100))
    scale = full(b"mdhd", 0, 0, 1000, 100_000)
    tables = box(b"stbl", full(b"stts", 1, 1000, 100), full(b"stsz", 100, 1000))
    one = box(b"trak", edits, box(b"mdia", scale, box(b"minf", tables)))
    data = FTYP + box(b"moov", full(b"mvhd", 0, 0, 1000, 100_000), one) + box(b"mdat", bytes(5000))
    if is_bomb:
        with pytest.raises(VideoRefused, match="max_frames"):
            read(data)
    else:
        assert read(data).tracks[0].counted(1000) == 1100


def test_hours_of_uncompressed_sound_are_no_bomb(read: Reader) -> None:
    sound = track(2**32 - 1, handler=b"soun", timing=(2**32 - 1, 1), chunks=5)
    assert read(FTYP + box(b"moov", sound) + box(b"mdat", bytes(100))).tracks[0].counted(1000) == 5


def test_too_many_tracks_are_refused(read: Reader) -> None:
    with pytest.raises(VideoRefused, match="max_streams"):
        read(FTYP + box(b"moov", *[track(1)] * 33) + box(b"mdat", bytes(5000)))


def test_a_huge_movie_header_is_refused(read: Reader) -> None:
    data = FTYP + struct.pack(">I4sQ", 1, b"moov", 2**40) + track(1)
    with pytest.raises(VideoRefused, match="max_header_bytes"):
        read(data)


def test_encryption_and_still_images_are_seen(read: Reader) -> None:
    protected = box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", box(b"stsd", bytes(8), box(b"encv"))))))
    keys = box(b"pssh", bytes(20))
    header = read(FTYP + box(b"moov", keys, track(5), protected) + box(b"mdat", bytes(99)))
    assert [one.is_encrypted for one in header.tracks] == [False, True]
    assert read(FTYP + box(b"meta", bytes(50)) + box(b"mdat", bytes(99))).is_still_image


@pytest.mark.parametrize(
    "whole",
    [
        FTYP
        + box(b"moov", track(0))
        + box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 5))))
        + box(b"mdat", bytes(1000)),
        b"\x1aE\xdf\xa3\x84abcd" + b"\x18S\x80g\x42\x00" + bytes(0x200),
        b"RIFF" + struct.pack("<I", 1004) + b"AVI " + bytes(1000),
    ],
)
def test_a_file_that_ends_before_its_container_is_cut_short(read: Reader, whole: bytes) -> None:
    assert not read(whole).is_cut_short
    assert read(whole[:-1]).is_cut_short


def test_where_tables_list_the_samples_a_box_that_ends_behind_the_file_tells_nothing(read: Reader) -> None:
    whole = FTYP + box(b"moov", track(5)) + box(b"mdat", bytes(1000))
    assert read(whole[:-1]).has_sample_tables
    assert not read(whole[:-1]).is_cut_short


def test_a_live_recording_does_not_tell_its_size(read: Reader) -> None:
    assert read(b"\x1aE\xdf\xa3\x80" + b"\x18S\x80g\x01" + b"\xff" * 7 + bytes(50)).declared_bytes is None


def element(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return name + struct.pack(">Q", len(body) | 1 << 56) + body


@pytest.mark.parametrize("is_at_the_end", [False, True])
def test_tags_of_a_matroska_are_counted_where_its_seek_head_points_too(
    is_at_the_end: bool, read: Reader
) -> None:
    tag = element(b"g\xc8", element(b"E\xa3", b"NAME"), element(b"D\x87", b"value"))
    tags = element(b"\x12T\xc3g", element(b"ss", element(b"c\xc0"), *[tag] * 5))
    cluster = element(b"\x1fC\xb6u", bytes(99))

    def seek_head(position: int) -> bytes:
        target = element(b"S\xab", b"\x12T\xc3g"), element(b"S\xac", struct.pack(">I", position))
        return element(b"\x11M\x9bt", element(b"M\xbb", *target))

    place = len(seek_head(0)) + (len(cluster) if is_at_the_end else 0)
    content = [cluster, tags] if is_at_the_end else [tags, cluster]
    data = element(b"\x1aE\xdf\xa3") + element(b"\x18S\x80g", seek_head(place), *content)
    assert not read(data, VideoLimits(max_tags=5)).is_cut_short
    with pytest.raises(VideoRefused, match="max_tags"):
        read(data, VideoLimits(max_tags=4))


def test_tags_of_a_movie_are_counted_in_all_of_its_boxes_of_tags(read: Reader) -> None:
    names = [b"\xa9nam", b"\xa9ART", b"\xa9day"]
    tags = box(b"ilst", *(box(name, box(b"data", bytes(8), b"x")) for name in names))
    handler = box(b"hdlr", bytes(8), b"mdir", bytes(13))
    of_mp4, of_quicktime = box(b"meta", bytes(4), handler, tags), box(b"meta", handler, tags)
    own = box(b"udta", of_mp4, box(b"\xa9cmt", b"\0\1\0\0x"))
    data = FTYP + box(b"moov", track(50), own, of_quicktime) + box(b"mdat", bytes(5000))
    assert read(data, VideoLimits(max_tags=9)).tracks[0].handler == b"vide"  # with two handlers of the tags
    with pytest.raises(VideoRefused, match="max_tags"):
        read(data, VideoLimits(max_tags=8))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_after_a_known_beginning_are_read_or_refused(read: Reader, data: bytes) -> None:
    for start in (FTYP, FTYP + b"\0\0\1\0moov", b"\x1aE\xdf\xa3", b"RIFF", b""):
        with contextlib.suppress(VideoRefused):
            read(start + data)
