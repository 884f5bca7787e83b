"""Files made to hurt are refused, for the reason that holds, and nothing of theirs is opened."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from clips import ClipFolder
from hostile_files import HOSTILE
from reading import read_video, same_frames

from app.errors import FrameboxError
from app.video.decoder import DecoderPool

CHECKOUT = Path(__file__).parents[3]


REFUSED = {name: code for name, (_, code) in HOSTILE.items() if code is not None}


def make(name: str, clips: ClipFolder, folder: Path) -> Path:
    target = folder / name
    HOSTILE[name][0](clips, target)
    return target


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_hostile_file_is_refused_for_its_reason(
    name: str, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    target = make(name, clips, tmp_path)
    before = psutil.Process().memory_info().rss
    with pytest.raises(FrameboxError) as refused:
        read_video(pool, target)
    assert refused.value.code == REFUSED[name]
    assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024
    if REFUSED[name] == "over_limit":
        assert {"limit", "limit_value", "value"} <= set(refused.value.extensions)
    for word in (str(tmp_path), "Traceback", "av.", "0x"):
        assert word not in refused.value.detail


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - REFUSED.keys()))
def test_a_video_with_wild_numbers_is_read_and_every_frame_accounted_for(
    name: str, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    video = read_video(pool, make(name, clips, tmp_path), frame_size=(64, 36))
    ids = {frame.frame_id for frame in video.frames}
    lost = {n for gap in video.undecodable for n in range(gap.first, gap.last + 1)}
    assert video.frames
    assert ids | lost == set(range(video.summary.frames_indexed))
    assert not ids & lost
    assert all("FRAMEBOX_DECODER_MEMORY_BYTES" in gap.reason for gap in video.undecodable)


def test_another_video_is_read_meanwhile_as_ever(
    clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    alone = read_video(pool, clips.get("h264_open_gop.mkv"), segment_frames=10)
    hostile = [make(name, clips, tmp_path) for name in ("index_bomb.mp4", "concat.mp4", "many_tracks.mkv")]
    is_over = threading.Event()

    def read_hostile_files() -> None:
        while not is_over.is_set():
            for video in hostile:
                with contextlib.suppress(FrameboxError):
                    read_video(pool, video)

    neighbour = threading.Thread(target=read_hostile_files, name="neighbour")
    neighbour.start()
    try:
        beside = read_video(pool, clips.get("h264_open_gop.mkv"), segment_frames=10)
    finally:
        is_over.set()
        neighbour.join()
    assert same_frames(alone.frames, beside.frames)


CALLS = "trace=%file,%network,%process,seccomp"
OWN_CALLS = (
    "recvmsg(",
    "exit_group(",
    "exit(",
    "+++",
    "---",
    "???(",
)  # the last: killed before strace could ask for the call
OF_AN_OPEN_FILE = re.compile(r'newfstatat\(\d+, ""')  # its size, not a path's


def test_children_that_read_hostile_files_call_for_no_file_no_network_and_no_process(
    clips: ClipFolder, tmp_path: Path
) -> None:
    """The lock-down would refuse them; that they are not even tried is better."""
    names = ("concat.mp4", "hls_http.m3u8", "session.sdp", "index_bomb.mp4", "wild_time_stamps.mp4")
    videos = [make(name, clips, tmp_path) for name in names]
    script = Path(__file__).with_name("indexing_host.py")
    strace = ["strace", "-ff", "-o", str(tmp_path / "trace"), "-e", CALLS]
    subprocess.run(
        [*strace, sys.executable, str(script), *map(str, videos)],
        check=True,
        timeout=120,
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
    )
    locked = [calls for trace in tmp_path.glob("trace.*") if (calls := _after_lock_down(trace)) is not None]
    assert len(locked) >= len(videos)
    for calls in locked:  # the video comes once, over the one socket
        assert sum(call.startswith("recvmsg(") for call in calls) <= 1
    calls = [call for calls in locked for call in calls if not OF_AN_OPEN_FILE.match(call)]
    assert [call for call in calls if not call.startswith(OWN_CALLS)] == []


def _after_lock_down(trace: Path) -> list[str] | None:
    """The calls of a child after its filter was in force; None if the process has none."""
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("seccomp(")]
    return lines[starts[-1] + 1 :] if starts else None
