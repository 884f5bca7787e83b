"""The decoder child: indexes and decodes one video in a sandbox, at the commands of a host.

It is forked from a server process that has this module loaded, so that it starts within milliseconds. It
locks itself down, and then waits for its video. It can reach that, the socket and the ring, and nothing else.
"""

from __future__ import annotations

import gc
import mmap
import os
import socket

from av import library_versions

from app.video.child import sandbox
from app.video.child.channel import Channel, SharedPictures
from app.video.child.container import OpenOptions, PacketReader
from app.video.child.decoding import MatchingDecoder, decode_by_counting
from app.video.child.ffmpeg_log import LogTail
from app.video.child.headers import Header
from app.video.child.indexing import Indexer
from app.video.child.refusal import VideoRefused
from app.video.child.serial import FrameCounter, SerialDecoder
from app.video.child.watch import PacketWatch
from app.video.protocol import ring
from app.video.protocol.messages import (
    Command,
    CountRequest,
    DecodeRequest,
    Fault,
    FaultCode,
    Message,
    Ready,
    unpack_threads,
)
from app.video.protocol.plan import ChildPlan


def serve(plan: ChildPlan) -> None:
    """Lock down, and serve commands until the host closes its end. Never returns."""
    try:
        # To look through what the server had loaded takes 10 ms a collection, and copies its pages.
        gc.freeze()
        assert isinstance(plan.channel, int)  # noqa: S101 - they have arrived
        assert isinstance(plan.ring, int)  # noqa: S101
        pictures = SharedPictures(mmap.mmap(plan.ring, ring.HEADER_BYTES + plan.ring_bytes))
        os.close(plan.ring)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=plan.channel) as end:
            state = sandbox.lock_down(
                channel=plan.channel, memory_bytes=plan.memory_bytes, require=plan.require_sandbox
            )
            channel = Channel(end, pictures.counters)
            versions = sorted((name, ".".join(map(str, number))) for name, number in library_versions.items())
            libraries = ", ".join(f"{name} {version}" for name, version in versions)
            channel.send(Message.READY, Ready(state, libraries).pack())
            video, payload = channel.receive_video()
            options = OpenOptions(video, unpack_threads(payload), plan.limits)
            try:
                _Child(channel, options, pictures).serve()
            except VideoRefused as refusal:
                channel.send(Message.FAULT, refusal.fault.pack())
            except MemoryError:
                channel.send(Message.FAULT, Fault(FaultCode.OUT_OF_MEMORY).pack())
    except EOFError:
        os._exit(0)
    except MemoryError:
        os._exit(2)
    except BaseException:  # noqa: BLE001 - the process's boundary; its end is what the host sees
        os._exit(1)


class _Child:
    def __init__(self, channel: Channel, options: OpenOptions, ring: SharedPictures) -> None:
        self._channel = channel
        self._options = options
        self._ring = ring
        self._reader: PacketReader | None = None
        self._has_indexed = False  # with the reader as it is
        self._log: LogTail | None = None
        self._serial: SerialDecoder | None = None

    def serve(self) -> None:
        while True:
            kind, payload = self._channel.receive()
            if kind is Command.INDEX:
                log = self._captured_log()
                if self._reader is None:
                    self._reader = PacketReader(self._options, self._channel, self._wait_if_large)
                else:
                    self._reader.reopen()
                    self._serial = None
                watch = PacketWatch(self._reader, self._channel, log)
                self._has_indexed = True
                Indexer(self._reader, watch, self._channel, self._options.limits).run()
            elif kind is Command.COUNT:
                request = CountRequest.unpack(payload)
                log = self._captured_log()
                reader = self._open()
                first, at = request.entry.ordinal, request.entry.position or 0
                watch = PacketWatch(reader, self._channel, log, first_place=first, from_byte=at)
                FrameCounter(reader, watch, self._channel, request).run()
            elif kind is Command.DECODE:
                self._decode(DecodeRequest.unpack(payload))

    def _captured_log(self) -> LogTail:
        """Capture FFmpeg's log. Start before it opens the video: it probes the first packets then."""
        self._log = self._log or LogTail()
        self._log.take("")  # forget what was logged during other work
        return self._log

    def _decode(self, request: DecodeRequest) -> None:
        # Not a part of `serve`: its variables would keep the last decoder's frames.
        self._channel.show_fed(0)
        reader = self._open()
        if request.frames_before is None:
            self._serial = None
            MatchingDecoder(reader, self._channel, self._ring, request).run()
            return
        serial = self._serial
        if serial is None or not serial.leads_to(request.entry, request.skipped, request.frames_before):
            serial = SerialDecoder(reader, self._channel, request.entry, request.skipped)
        self._serial = serial
        decode_by_counting(serial, self._channel, self._ring, request)

    def _wait_if_large(self, header: Header) -> None:
        """If the video's index takes much memory, wait until the host allows it to be opened."""
        if header.sample_count > self._options.limits.large_samples:
            self._channel.send(Message.LARGE)
            kind, _ = self._channel.receive()
            if kind is not Command.OPEN:
                raise EOFError

    def _open(self) -> PacketReader:
        """Return the reader where the last request left it, or at the beginning after an index."""
        if self._reader is None:
            self._reader = PacketReader(self._options, self._channel)
        elif self._has_indexed:
            self._reader.reopen()
        self._has_indexed = False
        return self._reader
