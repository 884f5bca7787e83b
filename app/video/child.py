"""The decoder child: opens one video behind a lock-down, indexes or decodes it, and speaks over pipes.

It is forked from a server process that has this module loaded, so that it starts within milliseconds. It
holds three descriptors and the ring, and it can reach nothing else.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
import numpy.typing as npt

from app.video import messages, ring, sandbox
from app.video.container import OpenOptions, PacketReader, VideoRefused
from app.video.decoding import CountingDecoder, MatchingDecoder
from app.video.ffmpeg_log import LogTail
from app.video.headers import Header
from app.video.indexing import Indexer
from app.video.limits import VideoLimits
from app.video.messages import Command, CountRequest, DecodeRequest, Fault, FaultCode, Message
from app.video.serial import FrameCounter, SerialDecoder
from app.video.watch import PacketWatch


class Descriptor:
    """A file descriptor of the engine that arrives in the child as its own number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (reduction.DupFd(self._number),)


def _detach(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """All that a child is given. Descriptors are numbers once it has arrived."""

    video: Descriptor | int
    commands: Descriptor | int
    messages: Descriptor | int
    ring: Descriptor | int
    ring_bytes: int
    threads: int
    memory_bytes: int  # address space, beyond what the child begins with
    limits: VideoLimits
    require_sandbox: bool


class Channel:
    """The child's ends: commands in, messages out, and three counters in shared memory for the watchdog."""

    def __init__(self, commands: int, out: int, counters: npt.NDArray[np.uint64]) -> None:
        self._commands = commands
        self._out = out
        self._counters = counters

    def send(self, kind: Message, payload: bytes = b"") -> None:
        data = memoryview(messages.pack(kind, payload))
        while data:
            data = data[os.write(self._out, data) :]

    def show_read(self, packets: int) -> None:
        """Tell how many packets this child has read in its life."""
        self._counters[ring.READ_COUNTER] = packets

    def show_fed(self, packets: int) -> None:
        """Tell how many packets of the current request have been given to the decoder, the next included."""
        self._counters[ring.FED_COUNTER] = packets

    @contextmanager
    def show_opening(self) -> Iterator[None]:
        """Tell since when a container is being opened, in processor time, for as long as the block runs."""
        self._counters[ring.OPENING_COUNTER] = time.process_time_ns()
        yield
        self._counters[ring.OPENING_COUNTER] = 0

    def receive(self) -> tuple[Command, bytes]:
        """Return the next command. Raises EOFError when the engine is gone."""
        kind, length = messages.HEAD.unpack(self._read(messages.HEAD.size))
        return Command(kind), self._read(length)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = os.read(self._commands, min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def run_child(plan: ChildPlan) -> None:
    """Serve commands until the engine closes its end. Never returns."""
    try:
        _serve(plan)
    except EOFError:
        os._exit(0)
    except MemoryError:
        os._exit(2)
    except BaseException:  # noqa: BLE001 - the process's boundary; its end is what the engine sees
        os._exit(1)


def _serve(plan: ChildPlan) -> None:
    descriptors = [plan.video, plan.commands, plan.messages, plan.ring]
    video, commands, out, ring_descriptor = (int(d) for d in descriptors if isinstance(d, int))
    memory = np.frombuffer(mmap.mmap(ring_descriptor, ring.HEADER_BYTES + plan.ring_bytes), dtype=np.uint8)
    os.close(ring_descriptor)
    state = sandbox.lock_down(
        keep=(video, commands, out), memory_bytes=plan.memory_bytes, require=plan.require_sandbox
    )
    channel = Channel(commands, out, ring.counters(memory))
    channel.send(Message.READY, state.pack())
    options = OpenOptions(video, plan.threads, plan.limits)
    try:
        _Child(channel, options, memory[ring.HEADER_BYTES :]).serve()
    except VideoRefused as refusal:
        channel.send(Message.FAULT, refusal.fault.pack())
    except MemoryError:
        channel.send(Message.FAULT, Fault(FaultCode.OUT_OF_MEMORY).pack())


class _Child:
    def __init__(self, channel: Channel, options: OpenOptions, ring: npt.NDArray[np.uint8]) -> None:
        self._channel = channel
        self._options = options
        self._ring = ring
        self._reader: PacketReader | None = None
        self._log: LogTail | None = None
        self._serial: SerialDecoder | None = None

    def serve(self) -> None:
        while True:
            kind, payload = self._channel.receive()
            if kind is Command.INDEX:
                self._index()
            elif kind is Command.COUNT:
                self._count(CountRequest.unpack(payload))
            elif kind is Command.DECODE:
                self._decode(DecodeRequest.unpack(payload))

    def _index(self) -> None:
        log = self._captured_log()
        reader = self._open_at_start()
        watch = PacketWatch(reader, self._channel, log)
        Indexer(reader, watch, self._channel, self._options.limits).run()

    def _count(self, request: CountRequest) -> None:
        log = self._captured_log()
        reader = self._open()
        first, at = request.entry.ordinal, request.entry.position or 0
        watch = PacketWatch(reader, self._channel, log, first_place=first, from_byte=at)
        FrameCounter(reader, watch, self._channel, request).run()

    def _captured_log(self) -> LogTail:
        """Take down what FFmpeg logs, from before it opens the video: it probes the first packets then."""
        self._log = self._log or LogTail()
        return self._log

    def _decode(self, request: DecodeRequest) -> None:
        reader = self._open()
        if request.frames_before is None:
            self._serial = None
            MatchingDecoder(reader, self._channel, self._ring, request).run()
            return
        serial = self._serial
        if serial is None or not serial.leads_to(request.entry, request.skipped, request.frames_before):
            serial = SerialDecoder(reader, self._channel, request.entry, request.skipped)
        self._serial = serial
        CountingDecoder(serial, self._channel, self._ring, request).run()

    def _open_at_start(self) -> PacketReader:
        if self._reader is None:
            self._reader = PacketReader(self._options, self._channel, self._wait_if_large)
        else:
            self._reader.reopen()
            self._serial = None
        return self._reader

    def _wait_if_large(self, header: Header) -> None:
        """Wait until the engine lets it open a video whose index takes much memory."""
        if header.sample_count > self._options.limits.large_samples:
            self._channel.send(Message.LARGE)
            kind, _ = self._channel.receive()
            if kind is not Command.OPEN:
                raise EOFError

    def _open(self) -> PacketReader:
        if self._reader is None:
            self._reader = PacketReader(self._options, self._channel)
        return self._reader
