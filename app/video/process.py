"""A decoder child as its host sees it: started, sent commands with deadlines, and always ended."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.errors import VideoOverLimit
from app.video.launch import run_child
from app.video.protocol import messages, ring
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Command, Message
from app.video.protocol.plan import ChildPlan, Descriptor
from app.video.results import WorkCancelled

_POLL_SECONDS = 0.1  # how often a wait checks for cancellation and for signs of life
_REAP_SECONDS = 1.0  # from a child's last sign to its exit status
_END_SECONDS = 10.0  # for a killed child to be gone
_PARENT_IS_GONE = 255  # the exit status that multiprocessing reports if the child's server has died

# Keeps memory, (ring_bytes,) uint8, in RAM for a GPU to read, for as long as it or a view of it lives.
Pin = Callable[[npt.NDArray[np.uint8]], None]


class ChildDied(Exception):
    """The child ended, or was ended because it stalled."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """How children are started and watched."""

    limits: VideoLimits
    memory_bytes: int  # address space of a child, without its ring
    ring_bytes: int
    stall_seconds: float
    require_sandbox: bool
    pin: Pin | None = None
    main: Callable[[ChildPlan], None] = run_child


@contextmanager
def _transient_faults() -> Iterator[None]:
    """Raise ChildDied if descriptors, memory or the server process are missing, not if the video is."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, EOFError) as error:
        raise ChildDied("could not be started") from error


FileKey = tuple[int, int, int, int]


def key_of(status: os.stat_result) -> FileKey:
    """Return what identifies one state of one file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class ChildProcess:
    """One decoder child, for one video. Not shared between threads, except `kill`.

    The constructor raises ChildDied if it cannot be started now.
    """

    def __init__(
        self, context: ForkServerContext, settings: ChildSettings, *, start_lock: threading.Lock
    ) -> None:
        self.video: Path | None = None  # until it is given one
        self.file_key: FileKey | None = None
        self.threads = 0
        self.has_decoded = False  # has been asked to
        self._stall_seconds = settings.stall_seconds
        self._max_opening_seconds = settings.limits.max_opening_seconds
        self._buffer = bytearray()
        self._has_ended = False
        self._pin = settings.pin
        self._start_lock = start_lock
        with ExitStack() as given, ExitStack() as kept, _transient_faults():
            ring_descriptor, self.memory = ring.create_memory(settings.ring_bytes)
            given.callback(os.close, ring_descriptor)
            own, childs = socket.socketpair()
            given.enter_context(childs)
            kept.enter_context(own)
            plan = ChildPlan(
                channel=Descriptor(childs.fileno()),
                ring=Descriptor(ring_descriptor),
                ring_bytes=settings.ring_bytes,
                memory_bytes=settings.memory_bytes,
                limits=settings.limits,
                require_sandbox=settings.require_sandbox,
            )
            with start_lock:
                self._process = context.Process(
                    target=settings.main, args=(plan,), name="decoder", daemon=True
                )
                self._process.start()
            kept.pop_all()
        self._channel = own
        self._channel.settimeout(settings.stall_seconds)  # for sending

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        """The ring's memory, without its counters, (ring_bytes,) uint8."""
        return self.memory[ring.HEADER_BYTES :]

    def pin_pictures(self) -> None:
        """Pin the ring if rings are pinned. Call it only for a child that decodes: others hardly use it."""
        pin, self._pin = self._pin, None
        if pin is not None:
            pin(self.memory)

    @property
    def packets_fed(self) -> int:
        """How many packets of the current request the decoder has got, according to the child."""
        return int(ring.counters(self.memory)[ring.FED_COUNTER])

    def give_video(self, video: Path, *, threads: int) -> None:
        """Give the child its only video, for FFmpeg to decode with `threads` threads.

        Closes the child and raises ChildDied if it is gone, and OSError if the video cannot be opened.
        """
        command = messages.pack(Command.VIDEO, messages.pack_threads(threads))
        try:
            with ExitStack() as given, _transient_faults():
                descriptor = os.open(video, os.O_RDONLY | os.O_CLOEXEC)
                given.callback(os.close, descriptor)
                self.file_key = key_of(os.fstat(descriptor))
                socket.send_fds(self._channel, [command], [descriptor])
        except BaseException:
            self.close()
            raise
        self.video, self.threads = video, threads

    def send(self, command: Command, payload: bytes = b"") -> None:
        """Send a command. Raises ChildDied if the child is gone or does not read."""
        self.has_decoded = self.has_decoded or command is Command.DECODE
        try:
            self._channel.sendall(messages.pack(command, payload))
        except TimeoutError:
            raise ChildDied("does not read its commands") from None
        except OSError as error:
            self._has_ended = True
            raise ChildDied("is gone") from error

    def receive(
        self, cancelled: Callable[[], bool], *, deadline: float | None = None
    ) -> tuple[Message, bytes]:
        """Return the child's next message.

        Raises ChildDied if it ends, makes no progress for the stall time, or passes `deadline` (of
        time.monotonic); VideoOverLimit if opening the video takes too much processor time;
        DecoderProtocolError; WorkCancelled.
        """
        last_sign = time.monotonic()
        signs = self._signs_of_life()
        while True:
            if cancelled():
                raise WorkCancelled
            if len(self._buffer) >= messages.HEAD.size:
                kind, length = messages.head_of(self._buffer)
                end = messages.HEAD.size + length
                if len(self._buffer) >= end:
                    payload = bytes(self._buffer[messages.HEAD.size : end])
                    del self._buffer[:end]
                    return kind, payload
            now = time.monotonic()
            if (shown := self._signs_of_life()) != signs:
                signs, last_sign = shown, now
            if now - last_sign > self._stall_seconds or (deadline is not None and now > deadline):
                raise ChildDied("stalled")
            self._check_opening()
            if connection.wait([self._channel], _POLL_SECONDS):
                try:
                    piece = self._channel.recv(1 << 16)
                except ConnectionError:  # it ended, and had not read all of its commands
                    piece = b""
                if not piece:
                    self._has_ended = True
                    raise ChildDied("ended")
                self._buffer += piece

    def _signs_of_life(self) -> tuple[int, ...]:
        return tuple(map(int, ring.counters(self.memory)))

    def _check_opening(self) -> None:
        """Raise VideoOverLimit if the child takes too long to open the video: a retry would take as long."""
        begun = int(ring.counters(self.memory)[ring.OPENING_COUNTER])
        if not begun or self.pid is None:
            return
        clock = ~self.pid << 3 | 2  # of its processor time, as clock_getcpuclockid of the C library makes it
        try:
            spent = (time.clock_gettime_ns(clock) - begun) // 1_000_000_000
        except OSError:
            return  # it has ended
        limit = self._max_opening_seconds
        if spent >= limit:
            raise VideoOverLimit(
                f"Opening the video takes more than {limit} seconds of processor time, as very many tags do.",
                {"limit": "max_opening_seconds", "limit_value": limit, "value": spent},
            )

    @property
    def has_unread(self) -> bool:
        return bool(self._buffer)

    def kill(self) -> None:
        """End the child now. The ring's memory stays as long as there is a view of it."""
        self._process.kill()

    def was_killed_by_others(self) -> bool:
        """Whether a SIGKILL or the end of its parent ended the child: neither is the video's fault."""
        if not self._has_ended:
            return False
        return self._wait_for_exit(_REAP_SECONDS) in (-signal.SIGKILL, _PARENT_IS_GONE)

    def close(self) -> None:
        """Kill the child and wait until it is gone."""
        self.kill()
        exit_code = self._wait_for_exit(_END_SECONDS)
        self._channel.close()
        if exit_code is not None:
            with self._start_lock:
                self._process.close()

    def _wait_for_exit(self, seconds: float) -> int | None:
        """Return the child's exit status; None if it has not ended within `seconds`.

        When a child is started, multiprocessing also checks all others, and two threads must not read one
        exit status: one of them may read from a descriptor that was closed and reused meanwhile, and then
        waits for ever. So it is read under the lock that guards the starts.
        """
        connection.wait([self._process.sentinel], seconds)
        with self._start_lock:
            return self._process.exitcode
