"""For every kind of video: the frames are ffmpeg's, and the same however the video is cut."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import RECIPES, ClipFolder
from reading import CHROMA_LEFT, WHOLE, ReadVideo, ffmpeg_pixels, read_video, same_frames

from app.video.decoder import DecoderPool

# Largest mean difference from the ffmpeg command's pixels over a picture, in levels of 255. MPEG-4's inverse
# transforms differ between versions in the last bit; 10-bit and sparse chroma is scaled to full size
# otherwise by versions before 6.
PIXEL_TOLERANCE = {"mpeg4.mp4": 0.1, "mpeg4.avi": 0.1, "hevc_10.mkv": 4.0, "svq1.mov": 6.0}
CHROMA_IN_THE_MIDDLE = {"prores.mov", "svq1.mov", "cfhd.mov"}  # streams that do not say where their chroma is
COUNTED = {
    *("h264.avi", "h264.h264", "fields.h264", "mpeg2.mpg", "mpeg4.avi"),
    *("b_fields.h264", "mpeg2_b_fields.m2v"),
    *("fields.m2v", "fields_intra.m2v", "mpeg2_fields.mpg", "mpeg2_fields_apart.mpg"),
    *("below_zero.mkv", "joined.ts", "size_change.ts"),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_frames_are_those_of_ffmpeg_and_independent_of_the_cut(
    name: str, clips: ClipFolder, pool: DecoderPool
) -> None:
    video = clips.get(name)
    whole = read_video(pool, video, segment_frames=WHOLE)
    _check_against_ffmpeg(name, video, whole)
    for segment_frames in (1, 7, 20):
        cut = read_video(pool, video, segment_frames=segment_frames, batch_size=3)
        assert same_frames(whole.frames, cut.frames), f"segments of {segment_frames} frames differ"
        assert [s.number for s in cut.segments] == list(range(len(cut.segments)))
    is_counted = any(segment.frames_before is not None for segment in whole.segments)
    assert is_counted == (name in COUNTED)


def _check_against_ffmpeg(name: str, video: Path, whole: ReadVideo) -> None:
    facts = whole.facts
    chroma = "" if name in CHROMA_IN_THE_MIDDLE else CHROMA_LEFT
    expected = ffmpeg_pixels(video, facts.width, facts.height, chroma=chroma)
    assert [frame.frame_id for frame in whole.frames] == list(range(len(expected)))
    assert whole.summary.frames_indexed == len(expected)
    assert not whole.undecodable
    assert not whole.corrupt_count
    for frame, pixels in zip(whole.frames, expected, strict=True):
        if frame.source_size == (facts.width, facts.height):
            difference = float(np.abs(frame.pixels - pixels).mean())
            assert difference <= PIXEL_TOLERANCE.get(name, 0.0), f"frame {frame.frame_id}"


def test_facts_tell_rotation_pixel_shape_and_rate(clips: ClipFolder, pool: DecoderPool) -> None:
    turned = read_video(pool, clips.get("rotated_90.mp4")).facts
    assert (turned.width, turned.height, turned.rotation_degrees) in ((72, 128, 90), (72, 128, 270))
    wide = read_video(pool, clips.get("wide_pixels.mp4"))
    assert wide.facts.sample_aspect_ratio == pytest.approx(4 / 3)
    assert (wide.facts.codec, wide.facts.container, wide.facts.frame_rate) == ("h264", "mov", Fraction(25))
    assert not wide.summary.variable_frame_rate
    assert wide.summary.duration_seconds == pytest.approx(2.0)
    assert read_video(pool, clips.get("vfr.mkv")).summary.variable_frame_rate


def test_a_size_change_opens_a_batch_and_names_the_source_size(clips: ClipFolder, pool: DecoderPool) -> None:
    video = read_video(pool, clips.get("size_change.ts"), batch_size=4)
    assert {frame.source_size for frame in video.frames} == {(128, 72), (192, 108)}
    assert video.batch_sizes == [4] * 12 + [2] + [4] * 12 + [2]


def test_pictures_are_scaled_upright_to_the_size_asked_for(clips: ClipFolder, pool: DecoderPool) -> None:
    upright = read_video(pool, clips.get("h264.mp4"), frame_size=(64, 36))
    turned = read_video(pool, clips.get("rotated_180.mp4"), frame_size=(64, 36))
    expected = ffmpeg_pixels(clips.get("h264.mp4"), 64, 36, scaling="area")
    luma = np.array([0.299, 0.587, 0.114])
    for frame, other, pixels in zip(upright.frames, turned.frames, expected, strict=True):
        assert frame.pixels.shape == (36, 64, 3)
        assert np.abs((frame.pixels - pixels) @ luma).mean() < 2.5  # colours are scaled as they are stored
        assert np.array_equal(frame.pixels, np.rot90(other.pixels, 2))
