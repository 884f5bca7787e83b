"""Pictures are turned and mirrored as ffmpeg turns and mirrors them."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from clips import ClipFolder
from reading import ffmpeg_pixels, read_video

from app.video.decoder import DecoderPool

ONE = 1 << 16
MATRIX_AT = 44  # from the name of a tkhd of version 0 to its matrix
Matrix = tuple[int, int, int, int]
# The matrix's a, b, c, d: clockwise turn after a possible swap of left and right.
ORIENTATIONS: dict[Matrix, tuple[int, bool]] = {
    (1, 0, 0, 1): (0, False),
    (-1, 0, 0, 1): (0, True),
    (1, 0, 0, -1): (180, True),
    (-1, 0, 0, -1): (180, False),
    (0, 1, -1, 0): (90, False),
    (0, -1, 1, 0): (270, False),
    (0, 1, 1, 0): (270, True),
    (0, -1, -1, 0): (90, True),
    (0, 0, 0, 0): (0, False),
}
REAL = {  # what ffmpeg makes of them: width, height, turn, mirrored
    "mirrored_hflip.mp4": (160, 120, 0, True),
    "mirrored_vflip.mp4": (160, 120, 180, True),
    "mirrored_sample_rotate_and_reflect.mp4": (720, 1080, 270, True),
    "zero_matrix.mp4": (160, 120, 0, False),
    "zero_matrix_no_timescale.mp4": (320, 240, 0, False),
}


def with_matrix(video: Path, target: Path, numbers: tuple[float, ...]) -> Path:
    data = bytearray(video.read_bytes())
    a, b, c, d = (round(number * ONE) for number in numbers)
    at = data.index(b"tkhd") + MATRIX_AT
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def as_matroska(video: Path, target: Path) -> Path:
    """The same packets and matrix in Matroska, where the muxer writes a projection."""
    with av.open(str(video)) as source, av.open(str(target), "w") as muxer:
        stream = muxer.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                muxer.mux(packet)
    return target


def check_against_ffmpeg(
    pool: DecoderPool, video: Path, *, expected: tuple[int, bool], tolerance: float = 0
) -> None:
    read = read_video(pool, video)
    facts = read.facts
    assert (facts.rotation_degrees, facts.mirrored) == expected
    pixels = ffmpeg_pixels(video, facts.width, facts.height)
    assert len(read.frames) == len(pixels)
    for frame, theirs in zip(read.frames, pixels, strict=True):
        assert frame.source_size == (facts.width, facts.height)
        assert np.abs(frame.pixels - theirs).mean() <= tolerance


@pytest.mark.parametrize("name", ["h264.mp4", "h264_sound.mov"])
@pytest.mark.parametrize("numbers", ORIENTATIONS)
def test_movies_are_shown_as_ffmpeg_shows_them(
    numbers: Matrix, name: str, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    video = with_matrix(clips.get(name), tmp_path / name, numbers)
    check_against_ffmpeg(pool, video, expected=ORIENTATIONS[numbers])


@pytest.mark.parametrize("numbers", [n for n in ORIENTATIONS if any(n)])
def test_a_projection_of_matroska_shows_what_the_matrix_did(
    numbers: Matrix, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    movie = with_matrix(clips.get("h264.mp4"), tmp_path / "movie.mp4", numbers)
    read = read_video(pool, as_matroska(movie, tmp_path / "movie.mkv"))
    expected = read_video(pool, movie)
    assert _shown(read.facts) == _shown(expected.facts)
    assert np.array_equal(read.frames[7].pixels, expected.frames[7].pixels)


def _shown(facts: object) -> tuple[object, ...]:
    return tuple(getattr(facts, name) for name in ("width", "height", "rotation_degrees", "mirrored"))


@pytest.mark.parametrize("degrees", [45, 200])
def test_any_other_angle_is_drawn_within_the_frames_own_size(
    degrees: int, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    video = with_matrix(clips.get("h264.mp4"), tmp_path / "odd.mp4", (cosine, sine, -sine, cosine))
    check_against_ffmpeg(pool, video, expected=(degrees, False), tolerance=0.5)


@pytest.mark.parametrize("name", REAL)
def test_files_from_elsewhere_are_shown_as_ffmpeg_shows_them(
    name: str, failing_videos: Path, pool: DecoderPool
) -> None:
    width, height, *expected = REAL[name]
    read = read_video(pool, failing_videos / name)
    assert _shown(read.facts) == (width, height, *expected)
    pixels = ffmpeg_pixels(failing_videos / name, width, height)
    assert len(read.frames) == len(pixels)
    _check_alike(read.frames[0].pixels, pixels[0])
    _check_alike(read.frames[-1].pixels, pixels[-1])


def _check_alike(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.int16]) -> None:
    assert np.abs(ours - theirs).mean() <= 1.5  # the place of chroma differs between versions of ffmpeg


@pytest.mark.parametrize("numbers", [(-1, 0, 0, 1), (0, 1, 1, 0)])
def test_mirrored_pictures_are_scaled_to_the_size_asked_for(
    numbers: Matrix, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    plain = read_video(pool, clips.get("h264.mp4"), frame_size=(64, 36)).frames
    mirrored = with_matrix(clips.get("h264.mp4"), tmp_path / "mirrored.mp4", numbers)
    size = (36, 64) if numbers[1] else (64, 36)
    for frame, other in zip(plain, read_video(pool, mirrored, frame_size=size).frames, strict=True):
        shown = frame.pixels.transpose(1, 0, 2) if numbers[1] else frame.pixels[:, ::-1]
        assert np.array_equal(other.pixels, shown)
