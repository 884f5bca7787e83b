"""Intact files that say odd things of themselves: as many frames as ffmpeg counts, and no false alarm."""

from __future__ import annotations

from pathlib import Path

import pytest
from numbered import answer

from app.video.decoder import DecoderPool


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
    assert found.completeness["complete"] is True


def test_a_header_that_claims_more_than_there_is_makes_a_video_incomplete_and_is_named(
    failing_videos: Path, pool: DecoderPool
) -> None:
    found = answer(pool, failing_videos / "avi_header_says_9999.avi")
    assert len(found.numbers) == 100
    assert found.completeness["complete"] is False
    assert "the header claims 399.960 seconds, and the frames end before" in found.completeness["notes"]


def test_a_recording_that_is_cut_says_where(failing_videos: Path, pool: DecoderPool) -> None:
    found = answer(pool, failing_videos / "paff_bfields_avchd.mts")
    assert [place["reason"] for place in found.completeness["damage"]] == ["the file ends inside a packet"]
