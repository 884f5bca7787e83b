"""Videos to segments, and segments to frames, by sandboxed decoder children.

    with DecoderPool(limits=VideoLimits(), …) as pool:
        with pool.index(video, segment_frames=300, sampling=Sampling(), cancelled=stop.is_set) as index:
            for segment in index: ...          # index.facts at once, index.summary at the end
        with pool.decode(video, segment, frame_size=(640, 360), batch_size=8, cancelled=…) as frames:
            for batch in frames:               # frames.outcome at the end
                use(batch.frame_ids, batch.frames)
                batch.release()

A child that crashes or hangs is replaced; what it delivered stays delivered, and the caller does not notice.
Data that kills every decoder is left out, and reported.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Self

from app.errors import InternalError
from app.restarts import pause_seconds
from app.video.decode_session import DecodeSession
from app.video.faults import over_limit
from app.video.index_session import IndexSession
from app.video.launch import PRELOADED, run_child
from app.video.process import ChildDied, ChildProcess, ChildSettings, Pin, key_of
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import DecoderProtocolError, Message, Ready
from app.video.protocol.plan import ChildPlan
from app.video.results import Cancelled, WorkCancelled
from app.video.sampling import Sampling
from app.video.sandbox_status import SandboxStatus
from app.video.segments import Segment
from app.video.session_child import SessionChild

_MAX_SLOTS = 16
_REVISION = 2  # grows when frames, their order or their pixels change


class DecoderPool:
    """The fork server of decoder children, those that wait for work, and the sessions that use them.

    Each child has `threads` of FFmpeg, `memory_bytes` of address space, and a ring of `ring_bytes` besides. A
    child that makes no progress for `stall_seconds` is ended. At most `idle_children` that have decoded wait
    for further segments of their video, and `ready_children` for a video. `pin` is called with the ring of
    each child that decodes. All methods may be called from several threads.
    """

    def __init__(
        self,
        *,
        limits: VideoLimits,
        threads: int = 1,
        memory_bytes: int,
        ring_bytes: int,
        stall_seconds: float = 60.0,
        require_sandbox: bool = True,
        idle_children: int = 2,
        ready_children: int = 0,
        pin: Pin | None = None,
        child_main: Callable[[ChildPlan], None] = run_child,
    ) -> None:
        self.threads = threads
        self._settings = ChildSettings(
            limits, memory_bytes, ring_bytes, stall_seconds, require_sandbox, pin, child_main
        )
        self._context: ForkServerContext | None = None
        self._start_lock = threading.Lock()  # multiprocessing's list of children is shared between threads
        self._idle_children = idle_children
        self._idle: list[ChildProcess] = []
        self._idle_lock = threading.Lock()
        self._ready = _ReadyChildren(ready_children, self._new_child)
        self._trial: Ready | None = None  # what the first child reported about itself
        self._large_turn = threading.BoundedSemaphore()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server process, and prove with one child that the sandbox works.

        Raises InternalError if it is required and does not.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._context = context
        try:
            self._new_child(lambda: False).close()
        except (ChildDied, DecoderProtocolError) as error:
            raise InternalError(
                "No decoder could be started: Landlock or seccomp may be missing (FRAMEBOX_REQUIRE_SANDBOX)."
            ) from error
        self._ready.start()

    def close(self) -> None:
        """End the waiting children. Open sessions end their own."""
        self._ready.close()
        with self._idle_lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    @property
    def sandbox(self) -> SandboxStatus | None:
        """Which parts of the sandbox are in force in the children. None before `start`."""
        return None if self._trial is None else SandboxStatus(**asdict(self._trial.lock_down))

    @property
    def identity(self) -> str:
        """Names all about the decoder that may change a picture or how frames are batched."""
        if self._trial is None:
            raise RuntimeError("the pool is not started")
        ring_bytes = self._settings.ring_bytes
        return f"{_REVISION} {self._trial.ffmpeg_versions} threads={self.threads} ring={ring_bytes}"

    def index(
        self, video: Path, *, segment_frames: int, sampling: Sampling | None = None, cancelled: Cancelled
    ) -> IndexSession:
        """Open `video`, and cut it into segments of at least `segment_frames` frames (the last may be less).

        Raises UnsupportedVideo, UnsupportedCodec, NoVideoStream, EncryptedVideo, NothingDecodable,
        VideoOverLimit, UnusableVideo, WorkCancelled; also during the iteration.
        """
        return IndexSession(
            self._session_child(video, cancelled),
            large_turn=self._large_turn,
            limits=self._settings.limits,
            segment_frames=segment_frames,
            sampling=sampling or Sampling(),
        )

    def decode(
        self,
        video: Path,
        segment: Segment,
        *,
        frame_size: tuple[int, int],
        batch_size: int,
        cancelled: Cancelled,
    ) -> DecodeSession:
        """Decode the wanted frames of `segment`, upright, at (width, height) = `frame_size`.

        Batches hold `batch_size` frames, or as many as let two batches fit in the ring. Raises VideoOverLimit
        if not even batches of one frame fit; during the iteration, WorkCancelled and InternalError.
        """
        fitting = self.effective_batch_size(frame_size, batch_size)
        slots = self._settings.ring_bytes // (fitting * frame_size[0] * frame_size[1] * 3)
        return DecodeSession(
            self._session_child(video, cancelled),
            segment,
            frame_size=frame_size,
            batch_size=fitting,
            slot_count=min(slots, _MAX_SLOTS),
        )

    def effective_batch_size(self, frame_size: tuple[int, int], batch_size: int) -> int:
        """Return how many frames a batch holds. Raises VideoOverLimit if the ring is too small for two."""
        frame_bytes, ring_bytes = frame_size[0] * frame_size[1] * 3, self._settings.ring_bytes
        fitting = min(batch_size, ring_bytes // (2 * frame_bytes))
        if fitting < 1:
            raise over_limit("ring_bytes", ring_bytes, 2 * frame_bytes)
        return fitting

    # -- children, for the sessions

    def _session_child(self, video: Path, cancelled: Cancelled) -> SessionChild:
        def acquire(threads: int | None) -> ChildProcess:
            return self.acquire(video, threads=threads, cancelled=cancelled)

        return SessionChild(acquire, self.give_back, cancelled, self._settings.memory_bytes, self.threads)

    def acquire(self, video: Path, *, threads: int | None, cancelled: Cancelled) -> ChildProcess:
        """Return a child of `video`: one that waits for more of it or for any video, or a new one.

        Raises ChildDied, WorkCancelled.
        """
        threads, key = threads or self.threads, key_of(video.stat())
        with self._idle_lock:
            for place, child in reversed(list(enumerate(self._idle))):
                if child.file_key == key and child.threads == threads:
                    return self._idle.pop(place)
        while (ready := self._ready.take()) is not None:
            with suppress(ChildDied):  # it was killed while it waited
                ready.give_video(video, threads=threads)
                return ready
        child = self._new_child(cancelled)
        child.give_video(video, threads=threads)
        return child

    def give_back(self, child: ChildProcess) -> None:
        """Let the child wait for further segments of its video.

        If too many children that have decoded wait, those that are idle longest end. Each job has at most
        one child that has only indexed, until that decodes or the video is forgotten.
        """
        surplus = [child]
        if not child.has_unread and self._context is not None and self._idle_children:
            with self._idle_lock:
                self._idle.append(child)
                surplus = [each for each in self._idle if each.has_decoded][: -self._idle_children]
                self._idle = [each for each in self._idle if each not in surplus]
        for old in surplus:
            old.close()

    def forget(self, video: Path) -> None:
        """End the children that wait for more of `video`: they keep it open, and so its disk space in use.

        The file may be gone already.
        """
        with self._idle_lock:
            forgotten = [child for child in self._idle if child.video == video]
            self._idle = [child for child in self._idle if child.video != video]
        for child in forgotten:
            child.close()

    def _new_child(self, cancelled: Cancelled) -> ChildProcess:
        """Return a child that waits for its video.

        Raises WorkCancelled; and ChildDied, also if a required part of the sandbox is not available.
        """
        if self._context is None:
            raise RuntimeError("the pool is not started")
        child = ChildProcess(self._context, self._settings, start_lock=self._start_lock)
        with ExitStack() as starting:
            starting.callback(child.close)
            kind, payload = child.receive(cancelled)
            if kind is not Message.READY:
                raise DecoderProtocolError("the child did not report that it is ready")
            greeting = Ready.unpack(payload)
            starting.pop_all()
        self._trial = self._trial or greeting
        return child


class _ReadyChildren:
    """Up to `count` children without a video, started by a thread from `start` to `close`.

    They are forked and locked down in advance, so that no work waits for that. The thread calls `make`; if
    that raises ChildDied, the thread calls it again after a pause.
    """

    def __init__(self, count: int, make: Callable[[Cancelled], ChildProcess]) -> None:
        self._count = count
        self._make = make
        self._children: deque[ChildProcess] = deque()
        self._missing = threading.Semaphore(count)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="ready-children", daemon=True)

    def start(self) -> None:
        if self._count:
            self._thread.start()

    def close(self) -> None:
        """End the thread and the children that were not taken."""
        self._closing.set()
        self._missing.release()
        if self._thread.is_alive():
            self._thread.join()
        while (child := self.take()) is not None:
            child.close()

    def take(self) -> ChildProcess | None:
        """Return the child that has waited longest, None if there is none. It will be replaced."""
        try:
            child = self._children.popleft()
        except IndexError:
            return None
        self._missing.release()
        return child

    def _fill(self) -> None:
        failures = 0
        while not self._closing.wait(pause_seconds(failures)):
            self._missing.acquire()
            if self._closing.is_set():
                return
            try:
                self._children.append(self._make(self._closing.is_set))
                failures = 0
            except (ChildDied, DecoderProtocolError):
                failures += 1
                self._missing.release()
            except WorkCancelled:
                return
