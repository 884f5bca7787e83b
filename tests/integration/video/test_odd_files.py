"""Intact files that say odd things of themselves: as many frames as ffmpeg counts, and no false alarm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import ClipFolder, ffmpeg
from numbered import answer
from reading import WHOLE, ffmpeg_pixels, read_video

from app.video.decoder import DecoderPool

Recipe = Callable[[ClipFolder, Path], None]


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("mdat_too_long.mp4", 30),  # the last box ends beyond the file, every sample lies in it
        ("trailing_junk.mp4", 100),  # 50 kB after the last box
        ("one_pts_back.ts", 150),  # one frame's time stamp lies 1.6 s back
    ],
)
def test_an_intact_file_is_complete(name: str, frames: int, failing_videos: Path, pool: DecoderPool) -> None:
    found = answer(pool, failing_videos / name)
    assert sorted(found.numbers) == list(range(frames))
    assert found.completeness.complete is True


def test_a_header_that_claims_more_than_there_is_makes_a_video_incomplete_and_is_named(
    failing_videos: Path, pool: DecoderPool
) -> None:
    found = answer(pool, failing_videos / "avi_header_says_9999.avi")
    assert len(found.numbers) == 100
    assert found.completeness.complete is False
    assert "the header claims 399.960 seconds, and the frames end before" in found.completeness.notes


def test_a_recording_that_is_cut_says_where(failing_videos: Path, pool: DecoderPool) -> None:
    found = answer(pool, failing_videos / "paff_bfields_avchd.mts")
    assert [place.reason for place in found.completeness.damage] == ["the file ends inside a packet"]


def _cut_open_gop(clips: ClipFolder, target: Path) -> None:
    """Copied from 0.7 s on: the frames before are hidden by an edit list, the first of them a tick apart."""
    ffmpeg("-ss", "0.7", "-i", clips.get("h264_open_gop.mkv"), "-c", "copy", target)


def _cut_before_b_frames(clips: ClipFolder, target: Path) -> None:
    """Copied from a keyframe on: the first two frames behind it need one from before."""
    ffmpeg("-ss", "1", "-i", clips.get("mpeg4.avi"), "-c", "copy", target)


def _without_presentation(source: str) -> Recipe:
    """Copied out of AVI, which has no times at which frames are shown: decoding times stand for them."""

    def make(clips: ClipFolder, target: Path) -> None:
        ffmpeg("-i", clips.get(source), "-c", "copy", target)

    return make


def _with_generated_presentation(clips: ClipFolder, target: Path) -> None:
    ffmpeg("-fflags", "+genpts", "-i", clips.get("h264.avi"), "-c", "copy", target)


def _mid_group(clips: ClipFolder, target: Path) -> None:
    """A recording that begins between two keyframes, with what decoders must know of the stream."""
    units = clips.get("h264.h264").read_bytes().split(b"\0\0\1")
    first_key = next(n for n, unit in enumerate(units) if unit and unit[0] & 31 == 5)
    target.write_bytes(b"\0\0\1".join(units[:first_key] + units[first_key + 1 :]))


def _with_last_comment(clips: ClipFolder, target: Path) -> None:
    data = clips.get("animation.gif").read_bytes()
    assert data[-1:] == b";"
    target.write_bytes(data[:-1] + b"!\xfe\5hello\0;")


def _chained(clips: ClipFolder, target: Path) -> None:
    target.write_bytes(2 * clips.get("theora.ogg").read_bytes())


def _segments(clips: ClipFolder, target: Path) -> list[bytes]:
    """The parts of a transport stream, whose counters begin again in each and whose time goes on."""
    pattern = target.with_name(f"{target.stem}_%d.ts")
    times = ("-segment_time", "0.4")
    ffmpeg("-i", clips.get("h264.mp4"), "-c", "copy", "-f", "segment", *times, pattern)
    return [Path(str(pattern).replace("%d", str(number))).read_bytes() for number in range(5)]


def _joined_segments(clips: ClipFolder, target: Path) -> None:
    target.write_bytes(b"".join(_segments(clips, target)))


def _joined_twice(clips: ClipFolder, target: Path) -> None:
    target.write_bytes(2 * clips.get("h264.ts").read_bytes())


def _matroska_twice(clips: ClipFolder, target: Path) -> None:
    target.write_bytes(2 * clips.get("h264_open_gop.mkv").read_bytes() + b"TAG".ljust(128, b"\0"))


def _broadcast(clips: ClipFolder, target: Path) -> None:
    """GXF has pictures of one size alone."""
    ffmpeg("-i", clips.get("h264.mp4"), "-s", "720x576", "-c:v", "mpeg2video", target)


def _piped(clips: ClipFolder, target: Path) -> None:
    """As it is written to a pipe: the header never gets its duration."""
    ffmpeg("-i", clips.get("vp8.webm"), "-c", "copy", target)
    data = bytearray(target.read_bytes())
    data[24:28] = b"\xff" * 4
    target.write_bytes(data)


MADE: dict[str, Recipe] = {
    "piped.ivf": _piped,
    "matroska_twice.mkv": _matroska_twice,
    "broadcast.gxf": _broadcast,
    "joined_segments.ts": _joined_segments,
    "joined_twice.ts": _joined_twice,
    "cut_open_gop.mp4": _cut_open_gop,
    "cut_b_frames.avi": _cut_before_b_frames,
    "mpeg4_of_avi.mp4": _without_presentation("mpeg4.avi"),
    "h264_of_avi.mp4": _without_presentation("h264.avi"),
    "h264_of_avi.mov": _with_generated_presentation,
    "mid_group.h264": _mid_group,
    "last_comment.gif": _with_last_comment,
    "chained.ogg": _chained,
}


@pytest.mark.parametrize("name", MADE)
def test_what_usual_tools_write_has_ffmpegs_frames_and_is_complete(
    name: str, clips: ClipFolder, tmp_path: Path, pool: DecoderPool
) -> None:
    video = tmp_path / name
    MADE[name](clips, video)
    whole = read_video(pool, video)
    expected = ffmpeg_pixels(video, whole.facts.width, whole.facts.height)
    for segment_frames in (7, WHOLE):
        read = read_video(pool, video, segment_frames=segment_frames)
        assert [frame.frame_id for frame in read.frames] == list(range(len(expected)))
        for frame, pixels in zip(read.frames, expected, strict=True):
            assert np.abs(frame.pixels - pixels).mean() < 1.0, f"frame {frame.frame_id}"
    assert answer(pool, video).completeness.complete is True


@pytest.mark.parametrize("name", ["mpeg4_of_avi.mp4", "h264_of_avi.mp4", "h264_of_avi.mov"])
def test_frames_without_times_of_their_own_get_rising_ones(
    name: str, clips: ClipFolder, tmp_path: Path, pool: DecoderPool
) -> None:
    video = tmp_path / name
    MADE[name](clips, video)
    stamps = [frame.pts for frame in read_video(pool, video).frames][4:]  # the first ones show that they lack
    assert stamps == sorted(set(stamps))


def test_a_segment_that_is_missing_from_a_joined_stream_is_noted(
    clips: ClipFolder, tmp_path: Path, pool: DecoderPool
) -> None:
    video = tmp_path / "joined.ts"
    segments = _segments(clips, video)
    video.write_bytes(b"".join(segments[:2] + segments[3:]))
    found = answer(pool, video)
    assert found.completeness.complete is False
    assert found.completeness.frames_undecodable == 12
    assert [max(found.numbers), len(found.numbers)] == [49, 38]
