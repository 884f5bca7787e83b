"""Damaged files: every frame that ffmpeg decodes, with its id in the intact file; the rest is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from reading import MIB, ReadFrame, read_video, same_frames

from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits

# name: (frames that ffmpeg decodes, frames of which the container tells, truncated)
EXPECTED = {
    "hole.mp4": (1264, 1394, False),
    "flip.ts": (1385, 1394, False),
    "trunc_faststart.mp4": (630, 1394, True),
    "trunc.mkv": (637, 639, True),
    "editlist.mp4": (51, 51, False),
    "opengop.mp4": (200, 200, False),
    "opengop265.mkv": (200, 200, False),
    "vp9.webm": (200, 200, False),
    "mpeg2.ts": (200, 200, False),
}
SMALL = (96, 54)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_decodable_frame_is_there_and_the_rest_is_accounted_for(
    name: str, test_data: Path, pool: DecoderPool
) -> None:
    decoded, indexed, truncated = EXPECTED[name]
    video = read_video(
        pool, test_data / "damaged" / name, segment_frames=100, frame_size=SMALL, batch_size=16
    )
    ids = {frame.frame_id for frame in video.frames}
    gaps = [*video.undecodable, *video.summary.lost.kept]
    lost = {n for gap in gaps for n in range(gap.first, gap.last + 1)}
    assert len(video.frames) == len(ids) == decoded
    assert video.summary.frames_indexed == indexed
    assert ids | lost == set(range(indexed))
    assert not ids & lost
    assert video.summary.truncated == truncated


@pytest.mark.parametrize("name", ["hole.mp4", "trunc_faststart.mp4"])
def test_frames_after_damage_keep_the_ids_of_the_intact_file(
    name: str, test_data: Path, people_video: Path, pool: DecoderPool
) -> None:
    intact = read_video(pool, people_video, segment_frames=300, frame_size=SMALL, batch_size=16)
    damaged = read_video(
        pool, test_data / "damaged" / name, segment_frames=300, frame_size=SMALL, batch_size=16
    )
    pts_of = {frame.frame_id: frame.pts for frame in intact.frames}
    assert all(pts_of[frame.frame_id] == frame.pts for frame in damaged.frames)


def test_only_pictures_patched_over_damage_depend_on_the_cut(test_data: Path, pool: DecoderPool) -> None:
    """A decoder patches holes from the pictures before, which a segment that begins there does not have."""
    video = test_data / "damaged" / "hole.mp4"
    whole = read_video(pool, video, frame_size=SMALL)
    cut = read_video(pool, video, segment_frames=60, frame_size=SMALL)
    assert [frame.frame_id for frame in whole.frames] == [frame.frame_id for frame in cut.frames]
    assert same_frames(_intact(whole.frames), _intact(cut.frames))
    assert whole.undecodable_count == cut.undecodable_count == 130
    assert {gap.reason for gap in cut.undecodable} == {"the decoder refused the data"}


def test_damage_gives_the_same_frames_every_time(test_data: Path, pool: DecoderPool) -> None:
    video = test_data / "damaged" / "flip.ts"
    first = read_video(pool, video, segment_frames=300, frame_size=SMALL, batch_size=16)
    second = read_video(pool, video, segment_frames=300, frame_size=SMALL, batch_size=16)
    assert same_frames(first.frames, second.frames)
    assert first.corrupt_count == second.corrupt_count > 0


def _intact(frames: list[ReadFrame]) -> list[ReadFrame]:
    return [frame for frame in frames if not 420 <= frame.frame_id < 560]


def test_a_child_that_has_read_the_damage_before_reports_it_the_same_again(tmp_path: Path) -> None:
    video = tmp_path / "cut.ivf"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=96x54:d=4", "-c:v", "libvpx", "-b:v"]
    subprocess.run([*command, "900k", str(video)], check=True)
    data = video.read_bytes()
    middle = len(data) // 2
    video.write_bytes(data[:middle] + data[middle + 700 :])
    with DecoderPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=4 * MIB) as pool:
        passes = [read_video(pool, video).summary for _ in range(3)]
    assert passes[0].damage
    assert all(other.damage == passes[0].damage and other.notes == passes[0].notes for other in passes)
