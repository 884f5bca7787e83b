"""Walkers over files that ffmpeg muxed: intact ones have no break, and damage to the chain is noted."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import MPEG2, SOURCE, ClipFolder, ffmpeg

from app.video.child.walkers.choice import walker_for

CONTAINERS = {
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".flv": "flv",
    ".avi": "avi",
    ".mpg": "mpeg",
    ".vob": "mpeg",
    ".ogg": "ogg",
    ".ivf": "ivf",
    ".asf": "asf",
    ".mp4": "mov",
    ".mov": "mov",
}
CLIPS = [
    *("h264.ts", "fields_apart.ts", "far_from_zero.ts", "cut_start.ts", "mpeg2_interlaced.ts", "h264.flv"),
    *(
        "flv1.flv",
        "h264.avi",
        "mjpeg.avi",
        "mpeg4.avi",
        "mpeg2.mpg",
        "mpeg2_fields.mpg",
        "theora.ogg",
        "wmv2.asf",
    ),
    *("vp8.webm", "vp9.webm", "vfr.mkv", "below_zero.mkv", "hevc_10.mkv", "h264_fragments.mp4"),
]
DAMAGED = ["h264.ts", "vfr.mkv", "vp8.webm", "h264.flv", "mpeg4.avi", "mpeg2.mpg", "theora.ogg", "wmv2.asf"]
SOUND = ["-f", "lavfi", "-i", "sine=duration=2"]
VARIANTS = {  # muxer options that lay the container out in another way
    "stamped.m2ts": [*MPEG2, "-mpegts_m2ts_mode", "1"],
    "constant_rate.ts": [*MPEG2, "-muxrate", "4000k"],  # with null packets
    "live.mkv": [*MPEG2, "-f", "matroska", "-live", "1"],
    "sound.mkv": [*SOUND, *MPEG2, "-c:a", "libvorbis", "-cluster_time_limit", "300"],
    "dvd.vob": [*SOUND, *MPEG2, "-f", "dvd", "-muxrate", "10080k"],
    "video_cd.mpg": [*SOUND, "-c:v", "mpeg1video", "-f", "vcd"],
    "sound.ogg": [*SOUND, "-c:v", "libtheora", "-c:a", "libvorbis"],
    "sound.flv": [*SOUND, "-c:v", "flv", "-ar", "44100"],
    "sound.avi": [*SOUND, "-c:v", "mpeg4", "-c:a", "pcm_s16le"],
    "vp8.ivf": ["-c:v", "libvpx"],
    "sound.asf": [*SOUND, "-c:v", "wmv2", "-c:a", "wmav2"],
    "dash.mp4": [*SOUND, "-c:v", "mpeg4", "-c:a", "aac", "-movflags", "dash+frag_keyframe", "-g", "10"],
}


def notes_on(path: Path) -> list[tuple[int, str]] | None:
    notes: list[tuple[int, str]] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        container = CONTAINERS[path.suffix]
        walker = walker_for(container, descriptor, size, lambda at, reason: notes.append((at, reason)))
        if walker is None:
            return None
        walker.finish()
    finally:
        os.close(descriptor)
    return notes


@pytest.mark.parametrize("name", CLIPS)
def test_an_intact_clip_has_no_break(clips: ClipFolder, name: str):
    assert notes_on(clips.get(name)) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_an_intact_file_of_another_layout_has_no_break(tmp_path: Path, name: str):
    path = tmp_path / name
    ffmpeg(*SOURCE, *VARIANTS[name], path)
    assert notes_on(path) == []


@pytest.mark.parametrize("name", ["h264.mp4", "h264_sound.mov", "mjpeg.mov"])
def test_a_file_with_sample_tables_has_no_walker(clips: ClipFolder, name: str):
    assert notes_on(clips.get(name)) is None


def damages(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield damage that no container's chain survives: its kind, its place, and the bytes."""
    rng = random.Random(5)
    count = len(data)
    size = max(count // 6, 10_000)
    at = count * 2 // 5
    if count > 3 * size:
        yield "zeros", at, data[:at] + bytes(size) + data[at + size :]
        yield "noise", at, data[:at] + rng.randbytes(size) + data[at + size :]
    yield "cut", at, data[:at] + data[at + 777 :]
    yield "insert", at, data[:at] + rng.randbytes(777) + data[at:]
    yield "truncated", count * 2 // 3, data[: count * 2 // 3]
    yield "end cut", count - 431, data[:-431]


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_noted_near_its_place(clips: ClipFolder, tmp_path: Path, name: str):
    for kind, place, damaged in damages(clips.get(name).read_bytes()):
        path = tmp_path / f"damaged{Path(name).suffix}"
        path.write_bytes(damaged)
        notes = notes_on(path)
        assert notes, kind
        assert len(notes) < 20, kind
        assert min(abs(at - place) for at, _ in notes) < 70_000, kind


def test_lost_transport_packets_are_noted_with_the_pid(clips: ClipFolder, tmp_path: Path):
    data = clips.get("h264.ts").read_bytes()
    for lost in (1, 5, 15, 17):
        path = tmp_path / "lost.ts"
        place = len(data) // 2 // 188 * 188
        path.write_bytes(data[:place] + data[place + lost * 188 :])
        notes = notes_on(path)
        assert notes
        assert any("PID 256" in reason and abs(at - place) < 4000 for at, reason in notes)
