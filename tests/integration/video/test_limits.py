"""Every limit of a video is a setting, and whoever passes it is told its name, its value and theirs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from clips import ClipFolder
from reading import MIB, WHOLE, never, read_video
from tagged_files import tagged

from app.errors import NothingDecodable, VideoOverLimit
from app.settings import Settings
from app.video.decoder import DecoderPool
from app.video.index_session import IndexSession
from app.video.protocol.limits import VideoLimits
from app.video.results import WorkCancelled

# limit: (its value, a clip, what the clip has)
PASSED = {
    "max_pixels": (9000, "h264.mp4", 128 * 72),
    "max_side": (100, "h264.mp4", 128),
    "max_frames": (49, "h264.mp4", 50),
    "max_frames ": (49, "h264_open_gop.mkv", 50),
    "max_frames of fragments": (49, "h264_fragments.mp4", 50),
    "max_streams": (1, "h264_sound.mov", 2),
    "max_decoded_pixels": (128 * 72 * 45, "h264_open_gop.mkv", 128 * 72 * 50),
    "max_header_bytes": (1024, "h264.mp4", None),
}


@pytest.mark.parametrize("case", PASSED)
def test_a_limit_that_is_passed_is_named_with_its_value(case: str, clips: ClipFolder) -> None:
    limit, clip, value = PASSED[case]
    name = case.split(maxsplit=1)[0]
    limits = VideoLimits(**{name: limit})
    with (
        DecoderPool(limits=limits, memory_bytes=512 * MIB, ring_bytes=4 * MIB) as pool,
        pytest.raises(VideoOverLimit) as refused,
    ):
        read_video(pool, clips.get(clip))
    told = refused.value.extensions
    assert (told["limit"], told["limit_value"]) == (name, limit)
    assert told["value"] == value if value else told["value"] > limit
    assert str(limit) in refused.value.detail
    assert name in Settings.model_fields


@pytest.mark.parametrize("name", ["max_pixels", "max_side", "max_frames", "max_decoded_pixels"])
def test_a_video_at_a_limit_is_read(name: str, clips: ClipFolder) -> None:
    exact = {"max_pixels": 128 * 72, "max_side": 128, "max_frames": 50, "max_decoded_pixels": 128 * 72 * 50}
    limits = VideoLimits(**{name: exact[name]})
    with DecoderPool(limits=limits, memory_bytes=512 * MIB, ring_bytes=4 * MIB) as pool:
        assert len(read_video(pool, clips.get("h264.mp4")).frames) == 50


@pytest.mark.parametrize("container", ["mp4", "mov", "webm"])
def test_tags_are_counted_before_they_are_compared(
    container: str, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    video = tmp_path / f"tagged.{container}"
    tagged(container, VideoLimits().max_tags - 10)(clips, video)
    assert len(read_video(pool, video, frame_size=(64, 36)).frames) == 50
    tagged(container, 20 * VideoLimits().max_tags)(clips, video)
    with pytest.raises(VideoOverLimit) as refused:
        read_video(pool, video)
    limit = VideoLimits().max_tags
    assert refused.value.extensions == {"limit": "max_tags", "limit_value": limit, "value": limit + 1}


@pytest.mark.parametrize("container", ["ogg", "avi"])
def test_what_opens_too_slowly_is_refused_at_the_first_try(
    container: str, clips: ClipFolder, tmp_path: Path
) -> None:
    """It would stand still for longer than a child may, three times over."""
    video = tmp_path / f"tagged.{container}"
    tagged(container, 100_000)(clips, video)  # for one or two minutes
    limits = VideoLimits(max_opening_seconds=1)
    with (
        DecoderPool(limits=limits, memory_bytes=512 * MIB, ring_bytes=4 * MIB) as pool,
        pytest.raises(VideoOverLimit) as refused,
    ):
        pool.index(video, segment_frames=WHOLE, cancelled=never)
    assert refused.value.extensions == {"limit": "max_opening_seconds", "limit_value": 1, "value": 1}


def test_of_videos_with_large_indexes_one_is_indexed_at_a_time(clips: ClipFolder) -> None:
    limits = VideoLimits(large_samples=49)
    large, small = clips.get("h264.mp4"), clips.get("vfr.mp4")
    with DecoderPool(limits=limits, memory_bytes=512 * MIB, ring_bytes=4 * MIB) as pool:
        with index(pool, large, never):
            index(pool, small, never).close()
            looks = count()
            with pytest.raises(WorkCancelled):
                index(pool, large, lambda: next(looks) > 3)
        with index(pool, large, never) as second:
            assert sum(segment.frame_count for segment in second) == 50
            index(pool, large, never).close()  # it is another one's turn as soon as the pass is through


def test_a_large_index_that_fails_ends_its_turn(clips: ClipFolder, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    whole = clips.get("h264_front.mp4").read_bytes()
    head, data = whole[: whole.index(b"mdat") + 4], whole[whole.index(b"mdat") + 4 :]
    broken.write_bytes(head + bytes(len(data)))
    with DecoderPool(
        limits=VideoLimits(large_samples=49), memory_bytes=512 * MIB, ring_bytes=4 * MIB
    ) as pool:
        for _ in range(2):
            with pytest.raises(NothingDecodable):
                index(pool, broken, never)


def index(pool: DecoderPool, video: Path, cancelled: Callable[[], bool]) -> IndexSession:
    return pool.index(video, segment_frames=20, cancelled=cancelled)
