"""Children that wait for a video, locked down, and children that decode what they have indexed."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from clips import ClipFolder
from reading import MIB, ReadVideo, never, read_video, same_frames

from app.video.decoder import DecoderPool
from app.video.process import ChildProcess
from app.video.protocol.limits import VideoLimits
from app.video.sampling import Sampling

DEADLINE_SECONDS = 30.0


class CountingPool(DecoderPool):
    """Remembers the children that it made, and those that it handed out."""

    def __init__(self, *, ready_children: int = 0, threads: int = 1) -> None:
        self.made: list[int | None] = []
        self.taken: list[int | None] = []
        super().__init__(
            limits=VideoLimits(),
            threads=threads,
            memory_bytes=512 * MIB,
            ring_bytes=16 * MIB,
            ready_children=ready_children,
        )

    def _new_child(self, cancelled: Callable[[], bool]) -> ChildProcess:
        child = super()._new_child(cancelled)
        self.made.append(child.pid)
        return child

    def acquire(self, video: Path, *, threads: int | None, cancelled: Callable[[], bool]) -> ChildProcess:
        child = super().acquire(video, threads=threads, cancelled=cancelled)
        self.taken.append(child.pid)
        return child

    def waiting(self) -> list[int | None]:
        return [child.pid for child in list(self._ready._children)]


@contextmanager
def filled(count: int) -> Iterator[CountingPool]:
    """Yield a pool with so many ready children."""
    with CountingPool(ready_children=count) as pool:
        wait_until(lambda: len(pool.waiting()) == count)
        yield pool


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_ready_child_is_taken_first_and_replaced(clips: ClipFolder) -> None:
    with filled(2) as pool:
        ready = pool.waiting()
        video = read_video(pool, clips.get("h264.mp4"))
        assert pool.taken[0] == ready[0]
        wait_until(lambda: len(pool.waiting()) == 2)
        assert ready[0] not in pool.waiting()
    assert len(video.frames) == 50


@pytest.mark.parametrize("name", ["h264.mp4", "h264_open_gop.mkv", "mjpeg.avi"])
def test_a_short_video_is_indexed_and_decoded_by_one_child(name: str, clips: ClipFolder) -> None:
    with CountingPool() as pool:
        before = len(pool.made)
        assert len(read_video(pool, clips.get(name)).frames) == 50
        assert len(pool.made) == before + 1
        assert len(set(pool.taken)) == 1


def test_of_many_videos_each_is_decoded_by_the_child_that_indexed_it(clips: ClipFolder) -> None:
    names = ["h264.mp4", "h264_open_gop.mkv", "mjpeg.avi", "vfr.mp4"]
    with CountingPool() as pool:
        segments = {}
        for name in names:
            with pool.index(clips.get(name), segment_frames=10**6, cancelled=never) as index:
                (segments[name],) = index
        made = len(pool.made)
        for name in names:
            with pool.decode(
                clips.get(name), segments[name], frame_size=(64, 36), batch_size=4, cancelled=never
            ) as session:
                for batch in session:
                    batch.release()
        assert len(pool.made) == made
        assert len(pool._idle) == 2


def test_a_child_of_other_threads_does_not_wait_for_what_it_has_indexed(clips: ClipFolder) -> None:
    with CountingPool(threads=2) as pool:
        with pool.index(clips.get("h264.mp4"), segment_frames=10**6, cancelled=never) as index:
            assert list(index)
        assert not pool._idle


@pytest.mark.parametrize(
    "name",
    ["h264.mp4", "h264_open_gop.mkv", "mjpeg.avi", "h264.h264", "h264_fragments.mp4", "below_zero.mkv"],
)
@pytest.mark.parametrize("segment_frames", [10, 10**6])
def test_a_child_that_has_indexed_decodes_as_a_fresh_one(
    name: str, segment_frames: int, clips: ClipFolder, tmp_path: Path
) -> None:
    video = clips.get(name)
    torn = tmp_path / name
    torn.write_bytes(with_a_hole(video.read_bytes()))
    for path in (video, torn):
        assert_alike(path, segment_frames)


def with_a_hole(data: bytes) -> bytes:
    """Return the file with zeros in its middle, 300 of them."""
    middle = len(data) // 2
    return data[:middle] + bytes(300) + data[middle + 300 :]


class ForgetfulPool(CountingPool):
    """Decodes nothing with a child that did something before."""

    def give_back(self, child: ChildProcess) -> None:
        child.close()


def assert_alike(video: Path, segment_frames: int) -> None:
    results: list[ReadVideo] = []
    for kind in (CountingPool, ForgetfulPool):
        with kind() as pool:
            results.append(
                read_video(pool, video, segment_frames=segment_frames, sampling=Sampling(stride=2))
            )
    reused, fresh = results
    assert same_frames(reused.frames, fresh.frames)
    assert (reused.undecodable, reused.corrupt_count) == (fresh.undecodable, fresh.corrupt_count)
    assert reused.summary.notes == fresh.summary.notes


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_ready_children_that_were_killed_are_passed_over(sign: signal.Signals, clips: ClipFolder) -> None:
    with filled(3) as pool:
        killed = pool.waiting()
        for pid in killed:
            assert pid is not None
            os.kill(pid, sign)
            wait_until(functools.partial(is_gone, pid))
        video = read_video(pool, clips.get("h264.mp4"))
        assert not set(killed) & set(pool.taken)
        wait_until(lambda: len(pool.waiting()) == 3)
    assert len(video.frames) == 50
    assert not video.undecodable


def test_closing_leaves_no_ready_child_and_no_descriptor_behind() -> None:
    with filled(1):
        pass  # the server is there from now on
    descriptors = psutil.Process().num_fds()
    with filled(3) as pool:
        pids = pool.waiting()
    assert psutil.Process().num_fds() <= descriptors
    for pid in pids:
        assert pid is not None
        assert is_gone(pid)


def test_a_missing_video_costs_no_child(tmp_path: Path) -> None:
    with filled(1) as pool:
        with pytest.raises(FileNotFoundError):
            pool.acquire(tmp_path / "none.mp4", threads=None, cancelled=never)
        assert len(pool.waiting()) == 1


def test_a_ready_child_holds_little_memory() -> None:
    with filled(3) as pool:
        for pid in pool.waiting():
            assert pid is not None
            assert psutil.Process(pid).memory_full_info().uss < 5 * MIB
