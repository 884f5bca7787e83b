"""Children that crash, hang, hoard, lie or are killed: the frames are the same, or their loss is named."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import cast

import psutil
import pytest
from clips import ClipFolder
from faulty_child import (
    ATTEMPTS,
    LIES,
    POISON,
    crashing_child,
    hanging_child,
    hoarding_child,
    run_evidence_liar,
    run_liar,
    run_prober,
)
from reading import MIB, child_of, never, read_video, same_frames

from app.errors import UnusableVideo, VideoOverLimit
from app.video.decoder import DecoderPool
from app.video.launch import run_child
from app.video.process import ChildDied, ChildProcess, ChildSettings
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Message, unpack_frames
from app.video.protocol.plan import ChildPlan
from app.video.results import WorkCancelled

DEADLINE_SECONDS = 20.0


@contextmanager
def pool_of(main: Callable[[ChildPlan], None], *, threads: int = 1) -> Iterator[DecoderPool]:
    with DecoderPool(
        limits=VideoLimits(),
        threads=threads,
        memory_bytes=128 * MIB,  # which a child that hoards takes within the stall time on a busy machine
        ring_bytes=4 * MIB,
        stall_seconds=1.0,
        child_main=main,
    ) as pool:
        yield pool


@pytest.mark.parametrize("child", [crashing_child, hanging_child, hoarding_child])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_packet_that_kills_decoders_costs_itself_alone(
    child: Callable[[ChildPlan], None], threads: int, clips: ClipFolder, pool: DecoderPool
) -> None:
    video = clips.get("mjpeg.avi")  # every packet stands for itself
    intact = read_video(pool, video, segment_frames=20)
    with pool_of(child, threads=threads) as faulty:
        damaged = read_video(faulty, video, segment_frames=20)
    assert [(gap.first, gap.last) for gap in damaged.undecodable] == [(POISON, POISON)]
    is_starved = child is hoarding_child
    assert ("memory" if is_starved else "crashed or stalled") in damaged.undecodable[0].reason
    expected = [frame for frame in intact.frames if frame.frame_id != POISON]
    assert same_frames(damaged.frames, expected)


def test_frames_that_are_counted_survive_a_packet_that_kills_decoders(
    clips: ClipFolder, pool: DecoderPool
) -> None:
    video = clips.get("h264.h264")
    with pool_of(crashing_child) as faulty:
        damaged = read_video(faulty, video, segment_frames=10)
    assert 45 <= len(damaged.frames) <= 50
    assert [frame.frame_id for frame in damaged.frames] == list(range(len(damaged.frames)))
    intact = read_video(pool, video, segment_frames=10)
    assert same_frames(damaged.frames[:20], intact.frames[:20])


def test_frames_that_need_more_memory_name_the_limit(clips: ClipFolder) -> None:
    with DecoderPool(limits=VideoLimits(), memory_bytes=24 * MIB, ring_bytes=4 * MIB) as small:
        video = read_video(small, clips.get("large.mp4"), frame_size=(64, 36))
    assert 0 < len(video.frames) < 24
    assert len(video.frames) + video.undecodable_count == 24
    limit = f"FRAMEBOX_DECODER_MEMORY_BYTES={24 * MIB}"
    assert {gap.reason for gap in video.undecodable} == {f"the decoder needs more memory than {limit}"}


def test_a_video_whose_first_frame_needs_more_memory_is_refused_by_the_limit(clips: ClipFolder) -> None:
    with (
        DecoderPool(limits=VideoLimits(), memory_bytes=4 * MIB, ring_bytes=4 * MIB) as small,
        pytest.raises(VideoOverLimit) as refused,
    ):
        read_video(small, clips.get("large.mp4"), frame_size=(64, 36))
    assert refused.value.extensions == {"limit": "decoder_memory_bytes", "limit_value": 4 * MIB}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_child_that_lies_harms_its_own_segment_alone(lie: str, clips: ClipFolder) -> None:
    with pool_of(functools.partial(run_liar, lie)) as faulty:
        video = read_video(faulty, clips.get("h264.mp4"), segment_frames=20)
    ids = [frame.frame_id for frame in video.frames]
    lost = [n for gap in video.undecodable for n in range(gap.first, gap.last + 1)]
    assert sorted([*ids, *lost]) == list(range(50))


def test_killing_children_in_the_middle_changes_nothing(clips: ClipFolder, pool: DecoderPool) -> None:
    video = clips.get("h264_open_gop.mkv")
    intact = read_video(pool, video)
    with pool.index(video, segment_frames=10**6, cancelled=never) as index:
        (segment,) = index
    frames = []
    with pool.decode(video, segment, frame_size=(128, 72), batch_size=4, cancelled=never) as session:
        for number, batch in enumerate(session):
            frames.append((batch.frame_ids.tolist(), batch.frames.copy()))
            if number in (0, 3, 7):
                child_of(session).kill()
            batch.release()
        assert session.outcome.frames_decoded == 50
        assert not session.outcome.undecodable
    ids = [frame_id for batch_ids, _ in frames for frame_id in batch_ids]
    assert ids == list(range(50))
    assert all(
        (pixels == intact.frames[frame_id].pixels).all()
        for batch_ids, pictures in frames
        for frame_id, pixels in zip(batch_ids, pictures, strict=True)
    )


class KillingPool(DecoderPool):
    """Kills children as they are handed out, as somebody short of memory might."""

    kills_left = 5

    def acquire(self, video: Path, *, threads: int | None, cancelled: Callable[[], bool]) -> ChildProcess:
        child = super().acquire(video, threads=threads, cancelled=cancelled)
        if self.kills_left:
            self.kills_left -= 1
            self.strike(child)
        return child

    def strike(self, child: ChildProcess) -> None:
        child.kill()


class BarrenPool(DecoderPool):
    """Has no children for a while, as a machine without memory, descriptors or processes left."""

    failures_left = 4

    def acquire(self, video: Path, *, threads: int | None, cancelled: Callable[[], bool]) -> ChildProcess:
        if self.failures_left:
            self.failures_left -= 1
            raise ChildDied("could not be started")
        return super().acquire(video, threads=threads, cancelled=cancelled)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.h264"])
def test_a_want_of_children_that_passes_costs_no_frame(name: str, clips: ClipFolder) -> None:
    with BarrenPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=4 * MIB) as barren:
        with barren.index(clips.get(name), segment_frames=20, cancelled=never) as index:
            barren.failures_left = 4
            segments = list(index)
        barren.failures_left = 4
        with barren.decode(
            clips.get(name), segments[0], frame_size=(128, 72), batch_size=4, cancelled=never
        ) as session:
            for batch in session:
                batch.release()
            assert session.outcome.frames_decoded == segments[0].frame_count


def test_waiting_for_a_child_ends_when_the_job_does(clips: ClipFolder) -> None:
    with BarrenPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=4 * MIB) as barren:
        barren.failures_left = 1000
        with pytest.raises(WorkCancelled):
            barren.index(
                clips.get("h264.mp4"), segment_frames=20, cancelled=lambda: barren.failures_left < 997
            )


@pytest.mark.parametrize("name", ["h264.mp4", "h264.h264"])
def test_killing_children_that_index_changes_nothing(name: str, clips: ClipFolder) -> None:
    with KillingPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=4 * MIB) as killing:
        with killing.index(clips.get(name), segment_frames=10, cancelled=never) as index:
            segments = list(index)
        assert killing.kills_left == 0
        assert sum(segment.frame_count for segment in segments) == 50
        assert not index.summary.truncated


class OrphaningPool(KillingPool):
    """Kills the server that the children are forked from; they end with it."""

    def strike(self, child: ChildProcess) -> None:
        server = psutil.Process(child.pid).parent()
        assert server is not None
        server.kill()  # not waited for: that is multiprocessing's to do
        assert connection.wait([child._process.sentinel], timeout=10)  # or the child may end its work before


@pytest.mark.parametrize("killing_pool", [KillingPool, OrphaningPool])
def test_killing_children_at_one_place_again_and_again_changes_nothing(
    killing_pool: type[KillingPool], clips: ClipFolder, pool: DecoderPool
) -> None:
    video = clips.get("h264.mp4")
    with pool.index(video, segment_frames=10**6, cancelled=never) as index:
        (segment,) = index
    with (
        killing_pool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=4 * MIB) as killing,
        killing.decode(video, segment, frame_size=(128, 72), batch_size=4, cancelled=never) as session,
    ):
        ids = []
        for batch in session:
            ids += batch.frame_ids.tolist()
            batch.release()
        assert killing.kills_left == 0
        assert not session.outcome.undecodable
    assert ids == list(range(50))


class DyingServer:
    """Stands in for multiprocessing's context while its server dies: no child comes of it."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def Process(self, **_: object) -> DyingServer:  # noqa: N802 - the context's name
        return self

    def start(self) -> None:
        raise self._fault


@pytest.mark.parametrize("fault", [EOFError, ConnectionRefusedError, BrokenPipeError])
def test_a_child_that_could_not_be_forked_has_died_and_leaves_no_descriptor(
    fault: type[Exception],
) -> None:
    settings = ChildSettings(VideoLimits(), 512 * MIB, 4 * MIB, stall_seconds=1.0, require_sandbox=True)

    def fail_to_start() -> None:
        context = cast("ForkServerContext", DyingServer(fault()))  # only Process is asked of one
        with pytest.raises(ChildDied):
            ChildProcess(context, settings, start_lock=threading.Lock())

    gc.collect()  # what tests before left
    before = psutil.Process().num_fds()
    fail_to_start()
    gc.collect()  # the traceback held the child that was not to be
    assert psutil.Process().num_fds() == before


def test_a_stopped_child_is_replaced(clips: ClipFolder) -> None:
    with pool_of(run_child) as pool:
        video = clips.get("h264.mp4")
        with pool.index(video, segment_frames=10**6, cancelled=never) as index:
            (segment,) = index
        with pool.decode(video, segment, frame_size=(128, 72), batch_size=4, cancelled=never) as session:
            for number, batch in enumerate(session):
                if number == 1:
                    pid = child_of(session).pid
                    assert pid is not None
                    os.kill(pid, signal.SIGSTOP)
                batch.release()
            assert session.outcome.frames_decoded == 50


def test_cancelling_ends_a_session_and_its_child(clips: ClipFolder, pool: DecoderPool) -> None:
    video = clips.get("h264.mp4")
    stop = threading.Event()
    with pool.index(video, segment_frames=10**6, cancelled=never) as index:
        (segment,) = index
    with pool.decode(video, segment, frame_size=(128, 72), batch_size=1, cancelled=stop.is_set) as session:
        batches = iter(session)
        next(batches).release()
        pid = child_of(session).pid
        assert pid is not None
        stop.set()
        with pytest.raises(WorkCancelled):
            next(batches)
    assert _is_gone(pid)


def test_a_childs_resources_are_limited(clips: ClipFolder, pool: DecoderPool) -> None:
    child = pool.acquire(clips.get("h264.mp4"), threads=1, cancelled=never)
    try:
        table = Path(f"/proc/{child.pid}/limits").read_text().splitlines()[1:]
    finally:
        child.close()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in table}
    assert limits["Max cpu time"] == ["86400", "86400"]
    assert limits["Max core file size"] == limits["Max file size"] == ["0", "0"]
    assert limits["Max open files"] == ["32", "32"]
    soft, hard = limits["Max address space"]
    assert soft == hard != "unlimited"


def test_a_child_can_reach_nothing_outside_before_or_after_it_has_its_video(clips: ClipFolder) -> None:
    with pool_of(run_prober) as pool:
        child = pool.acquire(clips.get("h264.mp4"), threads=1, cancelled=never)
        try:
            before, after = _probe(child), _probe(child)
        finally:
            child.close()
    for *outcomes, _ in (before, after):
        assert [name for name, error in zip(ATTEMPTS, outcomes, strict=True) if error == 0] == []
    assert before[-1] == 4  # descriptors: the null device three times, the channel
    assert after[-1] == 5  # and the video
    sandbox = pool.sandbox
    assert sandbox is not None
    assert sandbox.landlock_abi > 0
    assert sandbox.seccomp


def _probe(child: ChildProcess) -> list[int]:
    kind, payload = child.receive(never)
    assert kind is Message.FRAMES
    return [value for value in unpack_frames(payload) if value is not None]


def test_a_host_that_is_killed_leaves_no_child(clips: ClipFolder, tmp_path: Path) -> None:
    script = Path(__file__).with_name("holding_host.py")
    host = subprocess.Popen(
        [sys.executable, str(script), str(clips.get("h264.mp4"))],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert host.stdout is not None
    try:
        decoder = psutil.Process(int(host.stdout.readline()))
        family = [decoder, *psutil.Process(host.pid).children(recursive=True)]
        assert decoder.is_running()
    finally:
        host.kill()
        host.wait(DEADLINE_SECONDS)
        host.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=DEADLINE_SECONDS)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        threading.Event().wait(0.02)
    return False


def test_sessions_leave_no_descriptor_and_no_child_behind(clips: ClipFolder) -> None:
    video = clips.get("h264.mp4")
    with pool_of(run_child) as pool:
        read_video(pool, video, segment_frames=10)  # what stays: the server, and children that wait
        descriptors, family = _open_descriptors(), _family()
        for _ in range(5):
            read_video(pool, video, segment_frames=10)
            with pool.index(video, segment_frames=10, cancelled=never) as index:
                next(iter(index))  # and no further
        assert _open_descriptors() <= descriptors
        assert len(_family()) <= len(family)
        assert len(pool._idle) <= 2


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _family() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def test_evidence_from_beyond_the_packets_is_refused_so_that_it_cannot_pile_up(clips: ClipFolder) -> None:
    with pool_of(run_evidence_liar) as faulty, pytest.raises(UnusableVideo):
        read_video(faulty, clips.get("mjpeg.avi"))
