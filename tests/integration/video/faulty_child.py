"""Decoder children that go wrong, at one packet or in one message, behind the real lock-down."""

from __future__ import annotations

import ctypes
import functools
import os
import socket
from collections.abc import Callable, Container
from typing import Any, NoReturn

from av.packet import Packet
from av.video.stream import VideoStream

from app.video.child import main as child_main
from app.video.child.channel import Channel, SharedPictures
from app.video.child.container import PacketReader
from app.video.child.decoding import Delivery, MatchingDecoder
from app.video.child.serial import SerialDecoder
from app.video.child.watch import PacketWatch
from app.video.launch import run_child
from app.video.protocol import messages
from app.video.protocol.messages import BatchMessage, DecodeRequest, FrameStatus, Message
from app.video.protocol.packets import Entry, Evidence
from app.video.protocol.plan import ChildPlan

POISON = 25  # ordinal of the packet at which children go wrong


def crash() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError("still alive")


def hang() -> NoReturn:
    while True:
        pass


def fill_memory() -> None:
    hoard = [bytearray(1 << 24) for _ in range(1 << 16)]
    raise AssertionError(f"no limit at {len(hoard)}")


def run_with_poison(fault: Callable[[], object], plan: ChildPlan) -> None:
    """A child whose decoder does `fault` whenever it is given the packet POISON."""

    class PoisonedMatching(MatchingDecoder):
        def __init__(
            self, reader: PacketReader, channel: Channel, ring: SharedPictures, request: DecodeRequest
        ) -> None:
            super().__init__(reader, channel, ring, request)
            self._channel = PoisonedChannel(channel, fault, request.entry, lambda: request.skipped)

    prepare = SerialDecoder.__init__

    def prepare_poisoned(
        self: SerialDecoder, reader: PacketReader, channel: Channel, entry: Entry, skipped: tuple[int, ...]
    ) -> None:
        prepare(self, reader, channel, entry, skipped)
        self._channel = PoisonedChannel(channel, fault, entry, lambda: self._skipped)

    # A child's modules are its own: the decoders are poisoned in this process only.
    child_main.MatchingDecoder = PoisonedMatching  # type: ignore[attr-defined]
    SerialDecoder.__init__ = prepare_poisoned  # type: ignore[method-assign]
    run_child(plan)


class PoisonedChannel(Channel):
    """A decoder's channel that does `fault` as soon as it has shown that the packet POISON was fed."""

    def __init__(
        self,
        channel: Channel,
        fault: Callable[[], object],
        entry: Entry,
        skipped: Callable[[], Container[int]],
    ) -> None:
        super().__init__(channel._end, channel._counters)
        self._fault = fault
        self._first = entry.ordinal
        self._skipped = skipped

    def show_fed(self, packets: int) -> None:
        super().show_fed(packets)
        ordinal = self._first + packets - 1
        if ordinal == POISON and ordinal not in self._skipped():
            self._fault()


def run_liar(lie: str, plan: ChildPlan) -> None:
    """A child that was taken over: it decodes, and what it says of it is made up."""
    flush = Delivery.flush

    def lying_flush(self: Delivery) -> None:
        if self._ranks:
            LIES[lie](self)
        flush(self)

    Delivery.flush = lying_flush  # type: ignore[method-assign]  # the lie
    run_child(plan)


def run_evidence_liar(plan: ChildPlan) -> None:
    """A child that was taken over: it tells of damage at packets that the video cannot have."""
    read = PacketWatch.read

    def lying_read(self: PacketWatch) -> Packet[VideoStream] | None:
        for place in range(10**6, 10**6 + 50):
            evidence = Evidence(place, None, 1, "torn")
            self._channel.send(Message.EVIDENCE, messages.pack_evidence(evidence))
        return read(self)

    PacketWatch.read = lying_read  # type: ignore[method-assign]  # the lie
    run_child(plan)


def _say(writer: Delivery, data: bytes) -> None:
    channel = writer._channel
    os.write(channel._descriptor, data)


def _batch(writer: Delivery, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "slot": writer._free[0],
        "source_width": 128,
        "source_height": 72,
        "pts": tuple(writer._pts),
        "ranks": tuple(writer._ranks),
    }
    message = BatchMessage(**{**fields, **changes})
    _say(writer, messages.pack(Message.BATCH, message.pack()))


def _batch_twice(writer: Delivery) -> None:
    _batch(writer)
    _batch(writer)


LIES: dict[str, Callable[[Delivery], None]] = {
    "unknown message": lambda w: _say(w, messages.HEAD.pack(99, 0)),
    "oversized message": lambda w: _say(w, messages.HEAD.pack(Message.BATCH, 2**31)),
    "text": lambda w: _say(w, b"HTTP/1.1 200 OK\r\n\r\n"),
    "slot out of range": lambda w: _batch(w, slot=2**31),
    "rank out of range": lambda w: _batch(w, ranks=(2**31,), pts=(0,)),
    "frames backward": lambda w: _batch(w, ranks=tuple(reversed(w._ranks)), pts=tuple(reversed(w._pts))),
    "other time stamps": lambda w: _batch(w, pts=tuple(p + 1 for p in w._pts)),
    "impossible size": lambda w: _batch(w, source_width=2**31),
    "frames twice": _batch_twice,
    "too many frames": lambda w: _batch(w, ranks=tuple(range(40)), pts=tuple(range(40))),
    "decoded but not delivered": lambda w: _say(
        w, messages.pack(Message.SEGMENT_END, bytes([FrameStatus.DECODED]) * len(w._request.pts))
    ),
    "statuses of another length": lambda w: _say(w, messages.pack(Message.SEGMENT_END, b"\1")),
    "facts": lambda w: _say(w, messages.pack(Message.FACTS, b"")),
    "truncated batch": lambda w: _say(w, messages.pack(Message.BATCH, b"\0" * 7)),
}


def _attempts() -> dict[str, Callable[[], object]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return {
        "open": lambda: os.open("/etc/hostname", os.O_RDONLY),
        "create": lambda: os.open("/tmp/made-by-a-child", os.O_CREAT | os.O_WRONLY),
        "list": lambda: os.listdir("/"),  # noqa: PTH208 - the call itself
        "socket": lambda: socket.socket(socket.AF_INET),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606 - it must fail
        "signal parent": lambda: os.kill(os.getppid(), 0),
        "signal all": lambda: os.kill(-1, 0),
        "trace": lambda: call("ptrace", 16, os.getppid(), 0, 0),
        "unshare": lambda: call("unshare", 0x10000000),
        "shrink ring": lambda: os.truncate("/proc/self/fd/5", 0),
        "raise limits": lambda: call("setrlimit", 9, ctypes.byref((ctypes.c_ulong * 2)(2**60, 2**60))),
        "executable memory": lambda: call("mprotect", _page(), 4096, 7),
        "own memory file": lambda: os.open("/proc/self/mem", os.O_RDWR),
        "pipe": os.pipe,
        "receive from elsewhere": lambda: call("recvmsg", 0, None, 0),
        "send a descriptor": lambda: call("sendmsg", 3, None, 0),
        "read parent": lambda: call("process_vm_readv", os.getppid(), None, 0, None, 0, 0),
    }


def _page() -> int:
    buffer = ctypes.create_string_buffer(1 << 16)
    return (ctypes.addressof(buffer) + 4095) // 4096 * 4096


def run_prober(plan: ChildPlan) -> None:
    """A child that tries what it must not be able to do, and sends each attempt's errno (0: it could).

    It does so twice: before it has its video, and after.
    """

    class Prober:
        def __init__(self, channel: Channel, *_: object) -> None:
            self._channel = channel

        def serve(self) -> None:
            _probe(self._channel)
            self._channel.receive()

    receive_video = Channel.receive_video

    def probe_before(self: Channel) -> tuple[int, bytes]:
        _probe(self)
        return receive_video(self)

    Channel.receive_video = probe_before  # type: ignore[method-assign]  # to probe ahead of it
    child_main._Child = Prober  # type: ignore[assignment,misc]  # in its place
    run_child(plan)


def _probe(channel: Channel) -> None:
    results = [_outcome(attempt) for attempt in _attempts().values()]
    open_descriptors = [number for number in range(64) if _is_open(number)]
    channel.send(Message.FRAMES, messages.pack_frames([*results, len(open_descriptors)]))


def _outcome(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except OSError as error:
        return error.errno or -1
    return 0


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


ATTEMPTS = tuple(_attempts())
crashing_child = functools.partial(run_with_poison, crash)
hanging_child = functools.partial(run_with_poison, hang)
hoarding_child = functools.partial(run_with_poison, fill_memory)
