"""Files made to hurt are refused, for the reason that holds, fast, and nothing of theirs is opened."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from clips import ClipFolder
from hostile_files import HOSTILE
from reading import never, read_video

from app.errors import FrameboxError
from app.video.decoder import DecoderPool

SECONDS = 10.0
CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_for_its_reason(
    name: str, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    make, code = HOSTILE[name]
    target = tmp_path / name
    make(clips, target)
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    with pytest.raises(FrameboxError) as refused:
        read_video(pool, target)
    assert refused.value.code == code
    assert time.monotonic() - started < SECONDS
    assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024
    if code == "over_limit":
        assert {"limit", "limit_value", "value"} <= set(refused.value.extensions)
    for word in (str(tmp_path), "Traceback", "av.", "0x"):
        assert word not in refused.value.detail


def test_another_video_is_read_meanwhile_as_ever(
    clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    target = tmp_path / "index_bomb.mp4"
    HOSTILE["index_bomb.mp4"][0](clips, target)
    with pool.index(clips.get("h264.mp4"), segment_frames=10, cancelled=never) as index:
        first = next(iter(index))
        with pytest.raises(FrameboxError):
            read_video(pool, target)
        assert [first.number, *(segment.number for segment in index)] == list(range(5))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_child_opens_no_file_and_no_socket_of_a_playlist(clips: ClipFolder, tmp_path: Path) -> None:
    playlist, trace = tmp_path / "concat.mp4", tmp_path / "trace"
    HOSTILE["concat.mp4"][0](clips, playlist)
    names = (playlist, clips.get("h264.mp4"))
    script = Path(__file__).with_name("indexing_engine.py")
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=open,openat,openat2,socket,connect,execve"]
    subprocess.run(
        [*command, sys.executable, str(script), *map(str, names)],
        check=True,
        timeout=120,
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
    )
    calls = trace.read_text(encoding="utf-8", errors="replace")
    assert str(playlist) in calls
    assert "h264.ts" not in calls  # which the playlist names
    assert "AF_INET" not in calls
