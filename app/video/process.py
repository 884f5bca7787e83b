"""A decoder child, seen from the host: started, spoken to with deadlines, and ended for sure."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.video.faults import slow_opening
from app.video.launch import run_child
from app.video.protocol import messages, ring
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Command, DecoderProtocolError, Message, Ready
from app.video.protocol.plan import ChildPlan, Descriptor
from app.video.source import DecodingCancelled

_POLL_SECONDS = 0.1  # how often a wait looks for cancellation and for signs of life
_REAP_SECONDS = 1.0  # from a child's last sign to its exit status
_END_SECONDS = 10.0  # for a killed child to be gone
_PARENT_IS_GONE = 255  # what multiprocessing takes for an exit status where the child's server has died

# Keeps memory, (ring_bytes,) uint8, in RAM for a GPU to read, for as long as it or a view of it lives.
Pin = Callable[[npt.NDArray[np.uint8]], None]


class ChildDied(Exception):
    """The child ended, or was ended because it stood still."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """How children are made and watched."""

    limits: VideoLimits
    memory_bytes: int  # address space of a child, its ring apart
    ring_bytes: int
    stall_seconds: float
    require_sandbox: bool
    pin: Pin | None = None
    main: Callable[[ChildPlan], None] = run_child


@contextmanager
def _faults_that_pass() -> Iterator[None]:
    """Raise ChildDied for want of descriptors or memory, or of the server process. A missing video stays."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, EOFError) as error:
        raise ChildDied("could not be started") from error


FileKey = tuple[int, int, int, int]


def key_of(status: os.stat_result) -> FileKey:
    """Tell one state of one file from all others."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _owned_by(owner: ExitStack, descriptor: int) -> int:
    owner.callback(os.close, descriptor)
    return descriptor


class ChildProcess:
    """One decoder child, for one video. Not shared between threads, `kill` apart.

    Making it raises ChildDied where it cannot be started now.
    """

    def __init__(
        self, context: ForkServerContext, settings: ChildSettings, *, start_lock: threading.Lock
    ) -> None:
        self.video: Path | None = None  # before it is given one
        self.file_key: FileKey | None = None
        self.threads = 0
        self.has_decoded = False  # it has been asked to
        self._stall_seconds = settings.stall_seconds
        self._max_opening_seconds = settings.limits.max_opening_seconds
        self._buffer = bytearray()
        self._has_ended = False
        self._pin = settings.pin
        self._start_lock = start_lock
        with ExitStack() as given, ExitStack() as kept, _faults_that_pass():
            ring_descriptor, self.memory = ring.create_memory(settings.ring_bytes)
            _owned_by(given, ring_descriptor)
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
        self._channel.setblocking(False)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        """The ring's memory, without its counters, (ring_bytes,) uint8."""
        return self.memory[ring.HEADER_BYTES :]

    def pin_pictures(self) -> None:
        """Have the ring pinned, if rings are. Not for one that only indexes: it uses next to none of it."""
        pin, self._pin = self._pin, None
        if pin is not None:
            pin(self.memory)

    @property
    def packets_fed(self) -> int:
        """How many packets of the current request the child says it has given to the decoder."""
        return int(ring.counters(self.memory)[ring.FED_COUNTER])

    def wait_ready(self, cancelled: Callable[[], bool]) -> Ready:
        """Return what the child says of itself.

        Raises ChildDied, also where a required lock-down cannot be had.
        """
        kind, payload = self.receive(cancelled)
        if kind is not Message.READY:
            raise DecoderProtocolError("the child did not say that it is ready")
        return Ready.unpack(payload)

    @property
    def is_waiting(self) -> bool:
        """Whether the child lives, as far as is known, and says nothing, as it should before it is asked."""
        return not _poll(self._channel.fileno(), select.POLLIN, 0)

    def give_video(self, video: Path, *, threads: int) -> None:
        """Have the child open `video` and no other from now on, with so many threads of FFmpeg's.

        Raises ChildDied if it is gone, and OSError if the video cannot be opened.
        """
        command = messages.pack(Command.VIDEO, messages.pack_threads(threads))
        with ExitStack() as given, _faults_that_pass():
            descriptor = _owned_by(given, os.open(video, os.O_RDONLY | os.O_CLOEXEC))
            self.file_key = key_of(os.fstat(descriptor))
            socket.send_fds(self._channel, [command], [descriptor])
        self.video, self.threads = video, threads

    def send(self, command: Command, payload: bytes = b"") -> None:
        """Raises ChildDied if the child is gone or does not read."""
        self.has_decoded = self.has_decoded or command is Command.DECODE
        data = memoryview(messages.pack(command, payload))
        deadline = time.monotonic() + self._stall_seconds
        while data:
            try:
                data = data[self._channel.send(data) :]
            except BlockingIOError:
                if (
                    not _poll(self._channel.fileno(), select.POLLOUT, _POLL_SECONDS)
                    and time.monotonic() > deadline
                ):
                    raise ChildDied("does not read its commands") from None
            except OSError as error:
                self._has_ended = True
                raise ChildDied("is gone") from error

    def receive(
        self, cancelled: Callable[[], bool], *, deadline: float | None = None
    ) -> tuple[Message, bytes]:
        """Return the child's next message.

        Raises ChildDied if it ends, shows nothing for the stall time, or passes `deadline` (of
        time.monotonic); VideoOverLimit if opening the video takes too much processor time;
        DecoderProtocolError; DecodingCancelled.
        """
        last_sign = time.monotonic()
        signs = self._signs_of_life()
        while True:
            if cancelled():
                raise DecodingCancelled
            if (message := self._take_message()) is not None:
                return message
            now = time.monotonic()
            if (shown := self._signs_of_life()) != signs:
                signs, last_sign = shown, now
            if now - last_sign > self._stall_seconds or (deadline is not None and now > deadline):
                raise ChildDied("stood still")
            self._check_opening()
            if _poll(self._channel.fileno(), select.POLLIN, _POLL_SECONDS):
                self._read_more()

    def _signs_of_life(self) -> tuple[int, ...]:
        return tuple(map(int, ring.counters(self.memory)))

    def _check_opening(self) -> None:
        """A retry would take as long: what opens too slowly is refused, not taken for a child that hangs."""
        begun = int(ring.counters(self.memory)[ring.OPENING_COUNTER])
        if not begun or self.pid is None:
            return
        try:
            spent = (time.clock_gettime_ns(_processor_clock(self.pid)) - begun) // 1_000_000_000
        except OSError:
            return  # it has ended
        if spent >= self._max_opening_seconds:
            raise slow_opening(self._max_opening_seconds, spent)

    def _read_more(self) -> None:
        try:
            piece = self._channel.recv(1 << 16)
        except ConnectionError:  # it ended, and had not read all of its commands
            piece = b""
        if not piece:
            self._has_ended = True
            raise ChildDied("ended")
        self._buffer += piece

    def _take_message(self) -> tuple[Message, bytes] | None:
        size = messages.HEAD.size
        if len(self._buffer) < size:
            return None
        kind, length = messages.head_of(self._buffer)
        if len(self._buffer) < size + length:
            return None
        payload = bytes(self._buffer[size : size + length])
        del self._buffer[: size + length]
        return kind, payload

    @property
    def has_unread(self) -> bool:
        return bool(self._buffer)

    def kill(self) -> None:
        """End the child now, whatever it does. The ring's memory stays while somebody holds a view of it."""
        self._process.kill()

    def was_killed_by_others(self) -> bool:
        """Whether the child ended of a SIGKILL, or with its parent: neither is a fault of its video's."""
        if not self._has_ended:
            return False
        return self._wait_for_exit(_REAP_SECONDS) in (-signal.SIGKILL, _PARENT_IS_GONE)

    def close(self) -> None:
        """Kill the child and return when it is gone."""
        self.kill()
        exit_code = self._wait_for_exit(_END_SECONDS)
        self._channel.close()
        if exit_code is not None:
            with self._start_lock:
                self._process.close()

    def _wait_for_exit(self, seconds: float) -> int | None:
        """Return the child's exit status; None if it is not gone by then.

        Whoever starts a child has multiprocessing look at all others too, and two threads that read one exit
        status hinder each other: one of them may even read from a descriptor that was closed and given to
        something else meanwhile, and then waits for ever. So it is read under the lock of those who start.
        """
        _poll(self._process.sentinel, select.POLLIN, seconds)
        with self._start_lock:
            return self._process.exitcode


def _processor_clock(pid: int) -> int:
    """The clock of a process's processor time, as clock_getcpuclockid of the C library makes it on Linux."""
    return ~pid << 3 | 2


def _poll(descriptor: int, event: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, event)
    return bool(poller.poll(seconds * 1000))
