"""The 100 GB proof in small: a video larger than the memory of the whole instance. See `make proof-100gb`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from instance import CHECKOUT, Instance, make_clip, repeat_clip
from memory_group import MIB, MemoryGroup
from sparse_video import stretch_video

LIMIT_BYTES = 768 * MIB
VIDEO_BYTES = 1000 * MIB
OPTIONS = {"model": "hog-people", "max_side": 320}


def test_the_stretched_video_has_the_small_one_s_frames(tmp_path: Path) -> None:
    small = make_clip(tmp_path / "small.mp4", frames=60)
    stretch_video(small, tmp_path / "large.mp4", size_bytes=10_000_000_000)
    assert _frame_digests(tmp_path / "large.mp4") == _frame_digests(small)
    assert (tmp_path / "large.mp4").stat().st_blocks * 512 < 10_000_000


def _frame_digests(video: Path) -> list[str]:
    command = ["ffmpeg", "-v", "error", "-i", str(video), "-f", "framemd5", "-"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    digests = [line for line in shown.splitlines() if not line.startswith("#")]
    assert len(digests) == 60
    return digests


@pytest.mark.parametrize("memory_group", [LIMIT_BYTES], indirect=True)
def test_a_video_larger_than_all_memory_gives_the_frames_of_the_small_one(
    memory_group: MemoryGroup, tmp_path: Path
) -> None:
    small = repeat_clip(CHECKOUT / "docs" / "walkers.mp4", tmp_path / "small.mp4", times=1)
    large = tmp_path / "large.mp4"
    stretch_video(small, large, size_bytes=VIDEO_BYTES)
    assert large.stat().st_blocks * 512 < VIDEO_BYTES / 10, "the gaps are holes"
    instance = Instance(tmp_path / "data")
    try:
        instance.start(preexec_fn=memory_group.enter)
        expected = instance.post(small, **OPTIONS)
        answer = instance.post(large, **OPTIONS)
        assert (answer.status_code, answer.headers["Framebox-Complete"]) == (200, "true")
        assert answer.content == expected.content
        source = instance.report(answer.headers["Framebox-Job"])["source"]
        assert source["bytes"] == VIDEO_BYTES
        assert memory_group.out_of_memory_kills() == 0
        assert memory_group.held_bytes() < LIMIT_BYTES
        instance.stop()
    finally:
        instance.kill()
