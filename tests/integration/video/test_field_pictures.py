"""Frames of two field pictures come whole: both fields are decoded, or neither is."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import ClipFolder
from reading import WHOLE, read_video, same_frames

from app.video.decoder import DecoderPool
from app.video.sampling import Sampling

REAL = {"paff_bfields_avchd.mts": 7, "paff_bfields_sony_a7m3.mts": 3}  # frames that ffmpeg gives
B_FIELDS = ("b_fields_apart.ts", "b_fields_apart.mkv", "b_fields_apart.mp4", "mpeg2_b_fields_apart.mkv")


@pytest.mark.parametrize("segment_frames", [1, 2, 3, WHOLE])
@pytest.mark.parametrize("name", REAL)
def test_cameras_fields_that_no_other_needs_give_every_frame(
    name: str, segment_frames: int, failing_videos: Path, pool: DecoderPool
) -> None:
    read = read_video(pool, failing_videos / name, segment_frames=segment_frames, frame_size=(96, 54))
    assert [frame.frame_id for frame in read.frames] == list(range(REAL[name]))
    assert not read.corrupt_count


def test_a_first_field_without_its_second_is_an_undecodable_frame(
    failing_videos: Path, pool: DecoderPool
) -> None:
    """The cut file ends in the middle of its fourth frame, of which a decoder gives nothing."""
    read = read_video(pool, failing_videos / "paff_bfields_sony_a7m3.mts", frame_size=(96, 54))
    assert read.summary.frames_indexed == 4
    assert [(gap.first, gap.last) for gap in read.undecodable] == [(3, 3)]


@pytest.mark.parametrize("sampling", [Sampling(stride=2), Sampling(stride=3), Sampling(fps=8)], ids=str)
@pytest.mark.parametrize("name", B_FIELDS)
def test_sampled_frames_of_two_fields_are_those_of_the_whole(
    name: str, sampling: Sampling, clips: ClipFolder, pool: DecoderPool
) -> None:
    video = clips.get(name)
    every = {frame.frame_id: frame for frame in read_video(pool, video).frames}
    for segment_frames in (1, 3, WHOLE):
        read = read_video(pool, video, segment_frames=segment_frames, sampling=sampling)
        assert len(read.frames) == read.summary.frames_wanted < len(every)
        assert same_frames(read.frames, [every[frame.frame_id] for frame in read.frames])
        assert not read.undecodable
