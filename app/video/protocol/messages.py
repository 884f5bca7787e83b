"""The messages between host and decoder child: fixed layouts, little endian, every field checked.

The child reads the host's commands. The host reads the child's messages and trusts none of them: a decoder
that was taken over may lie about its own video, and about nothing else. A message is a head of eight bytes
(kind, length) and a payload.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from app.video.protocol.facts import OtherStream, StreamKind, VideoFacts
from app.video.protocol.packets import Entry, Evidence, PacketRecord

HEAD = struct.Struct("<II")
MOST_UNSENT_PACKETS = 8192  # that an indexing child has read but not reported yet
MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # from the child
MAX_FRAME_SIDE = 1 << 16
_MAX_STREAM_INDEX = 100_000
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_NONE = -(2**63)  # stands for a time stamp or position that is absent
_ENTRY = struct.Struct("<qqqqq")


class DecoderProtocolError(Exception):
    """A child sent what no honest child sends. Treated like a crash of the child."""


class Command(IntEnum):
    INDEX = 1
    DECODE = 2
    RELEASE = 3
    COUNT = 4
    OPEN = 5  # the answer to LARGE
    VIDEO = 6  # the first, with the video's descriptor


class Message(IntEnum):
    READY = 1
    FACTS = 2
    FAULT = 3
    PACKETS = 4
    INDEX_END = 5
    BATCH = 6
    SEGMENT_END = 7
    FRAMES = 8
    EVIDENCE = 10  # of lost data; comes before the packets or frames that follow it
    LARGE = 9  # the index will take much memory: the child waits for OPEN


class FrameStatus(IntEnum):
    """What happened to a frame of a segment."""

    NOT_SEEN = 0
    DECODED = 1
    CORRUPT = 2  # decoded, and marked by the decoder as built on missing or damaged data
    REJECTED = 3  # the decoder refused its packet
    NOT_SHOWN = 4  # the decoder accepted its packet, but returned no picture
    NO_PACKET = 5  # the container holds no data for it
    SKIPPED = 6  # its packet was left out because it had crashed decoders
    OUT_OF_ORDER = 7  # decoded, after frames that are shown later
    OUT_OF_MEMORY = 8  # its packet needs more memory than the decoder may take


_MESSAGES = {int(kind): kind for kind in Message}


class FaultCode(IntEnum):
    UNSUPPORTED = 1
    NO_VIDEO_STREAM = 2
    ENCRYPTED = 3
    NOTHING_DECODABLE = 4
    OVER_LIMIT = 5
    ENTRY_NOT_FOUND = 6
    OUT_OF_MEMORY = 7
    UNSUPPORTED_CODEC = 8


def pack(kind: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(kind, len(payload)) + payload


def head_of(data: bytes | bytearray) -> tuple[Message, int]:
    """Return a message's kind and the length of its payload. `data` begins with its head."""
    number, length = HEAD.unpack_from(data)
    if number not in _MESSAGES or length > MAX_MESSAGE_BYTES:
        raise DecoderProtocolError("an unknown or oversized message")
    return _MESSAGES[number], length


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise DecoderProtocolError(f"{len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)


def _absent(value: int | None) -> int:
    return _NONE if value is None else value


def _present(value: int) -> int | None:
    return None if value == _NONE else value


def _pack_entry(entry: Entry) -> bytes:
    stamps = (_absent(entry.pts), _absent(entry.dts), _absent(entry.position))
    return _ENTRY.pack(entry.ordinal, *stamps, entry.size_bytes)


def _unpack_entry(payload: bytes) -> Entry:
    ordinal, pts, dts, position, size = _ENTRY.unpack_from(payload)
    return Entry(ordinal, _present(pts), _present(dts), _present(position), size)


def _text(value: str, size: int) -> bytes:
    return value.encode("ascii", "replace")[:size]


def _name(raw: bytes) -> str:
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    if not all(char.isalnum() or char in "_-,. " for char in text):
        raise DecoderProtocolError("a name with odd characters")
    return text


# -- start of a child

_READY = struct.Struct("<iiii")
_MAX_VERSIONS_BYTES = 512


@dataclass(frozen=True, slots=True)
class LockDown:
    """Which parts of the sandbox are in force in a child."""

    landlock_abi: int  # 0: not in force
    seccomp: bool
    no_new_privileges: bool
    memory_limited: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """What a child reports before its first command."""

    lock_down: LockDown
    ffmpeg_versions: str  # of FFmpeg's libraries, in the order of their names

    def pack(self) -> bytes:
        state = self.lock_down
        head = _READY.pack(state.landlock_abi, state.seccomp, state.no_new_privileges, state.memory_limited)
        return head + self.ffmpeg_versions.encode("ascii")

    @classmethod
    def unpack(cls, payload: bytes) -> Ready:
        if not 0 < len(payload) - _READY.size <= _MAX_VERSIONS_BYTES:
            raise DecoderProtocolError("a greeting of another length")
        landlock, seccomp, no_new_privileges, limited = _READY.unpack_from(payload)
        if not 0 <= landlock < 1000:
            raise DecoderProtocolError("Landlock ABI out of range")
        state = LockDown(landlock, bool(seccomp), bool(no_new_privileges), bool(limited))
        return cls(state, _name(payload[_READY.size :]))


def pack_threads(threads: int) -> bytes:
    """Return the payload of VIDEO: the number of FFmpeg's threads."""
    return struct.pack("<I", threads)


def unpack_threads(payload: bytes) -> int:
    return int.from_bytes(payload, "little")


# -- faults

_FAULT = struct.Struct("<Iqq32s32s")
_MAX_CODECS_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    code: FaultCode
    limit: str = ""  # the limit's name, with OVER_LIMIT
    limit_value: int = 0
    value: int = 0
    codec: str = ""  # its name, with UNSUPPORTED_CODEC
    supported_codecs: tuple[str, ...] = ()  # the names of all others, with UNSUPPORTED_CODEC

    def pack(self) -> bytes:
        names = (_text(self.limit, 32), _text(self.codec, 32))
        head = _FAULT.pack(self.code, self.limit_value, self.value, *names)
        return head + _text(",".join(self.supported_codecs), _MAX_CODECS_BYTES)

    @classmethod
    def unpack(cls, payload: bytes) -> Fault:
        if not 0 <= len(payload) - _FAULT.size <= _MAX_CODECS_BYTES:
            raise DecoderProtocolError("a fault of another length")
        code, limit_value, value, limit, codec = _FAULT.unpack_from(payload)
        supported = tuple(filter(None, _name(payload[_FAULT.size :]).split(",")))
        if code not in [*FaultCode]:
            raise DecoderProtocolError("an unknown fault")
        return cls(FaultCode(code), _name(limit), limit_value, value, _name(codec), supported)


# -- facts

_STREAM_KINDS = tuple(StreamKind)
_MAX_OTHER_STREAMS = 32
_STREAM = struct.Struct("<II32sII16sII")
_FACTS = struct.Struct("<64s32s32sIIIIqqqqqqdIqq?")


@dataclass(frozen=True, slots=True)
class FoundVideo:
    """What a child reports about the video that it opened."""

    facts: VideoFacts
    first_shown_pts: int | None  # time stamp of the first frame that its decoder put out
    enumerates_frames: bool = False  # the container has a table of all its samples


def pack_facts(found: FoundVideo) -> bytes:
    facts = found.facts
    rates = (facts.time_base, facts.frame_rate or Fraction(0), facts.sample_aspect_ratio)
    payload = _FACTS.pack(
        _text(facts.container, 64),
        _text(facts.codec, 32),
        _text(facts.pixel_format, 32),
        facts.width,
        facts.height,
        facts.rotation_degrees,
        facts.mirrored,
        *(number for rate in rates for number in rate.as_integer_ratio()),
        math.nan if facts.duration_seconds is None else facts.duration_seconds,
        facts.stream_index,
        _absent(facts.frames_from_header),
        _absent(found.first_shown_pts),
        found.enumerates_frames,
    )
    for stream in facts.other_streams:
        payload += _STREAM.pack(
            stream.index,
            _STREAM_KINDS.index(stream.kind),
            _text(stream.codec, 32),
            min(stream.width, MAX_FRAME_SIDE),
            min(stream.height, MAX_FRAME_SIDE),
            # without the characters that the host would refuse: containers hold anything
            _text("".join(char for char in stream.language if char in _PLAIN), 16),
            stream.is_default,
            stream.is_picture,
        )
    return payload


def _unpack_stream(fields: tuple[Any, ...], *, chosen: int) -> OtherStream:
    index, kind, codec, width, height, language, is_default, is_picture = fields
    if (
        index > _MAX_STREAM_INDEX
        or index == chosen
        or kind >= len(_STREAM_KINDS)
        or max(width, height) > MAX_FRAME_SIDE
        or max(is_default, is_picture) > 1
    ):
        raise DecoderProtocolError("an impossible stream")
    size, flags = (width, height), (bool(is_default), bool(is_picture))
    return OtherStream(index, _STREAM_KINDS[kind], _name(codec), *size, _name(language), *flags)


def unpack_facts(payload: bytes) -> FoundVideo:
    payload, others = payload[: _FACTS.size], payload[_FACTS.size :]
    if len(payload) != _FACTS.size or len(others) % _STREAM.size:
        raise DecoderProtocolError("facts of another length")
    if len(others) > _MAX_OTHER_STREAMS * _STREAM.size:
        raise DecoderProtocolError("too many streams")
    (container, codec, pixel_format, width, height, rotation, mirrored, *numbers) = _FACTS.unpack(payload)
    *rates, duration, stream, frames, first_pts, enumerates = numbers
    tick_n, tick_d, rate_n, rate_d, sar_n, sar_d = rates
    if not (0 < width < MAX_FRAME_SIDE and 0 < height < MAX_FRAME_SIDE):
        raise DecoderProtocolError("an impossible picture size")
    if rotation >= 360 or mirrored > 1:
        raise DecoderProtocolError("an impossible orientation")
    if min(tick_n, tick_d, rate_d, sar_n, sar_d) <= 0 or rate_n < 0 or stream > _MAX_STREAM_INDEX:
        raise DecoderProtocolError("impossible rates")
    if not math.isnan(duration) and not 0 <= duration < 1e13:
        raise DecoderProtocolError("an impossible duration")
    facts = VideoFacts(
        container=_name(container),
        codec=_name(codec),
        pixel_format=_name(pixel_format),
        width=width,
        height=height,
        rotation_degrees=rotation,
        mirrored=bool(mirrored),
        time_base=Fraction(tick_n, tick_d),
        frame_rate=Fraction(rate_n, rate_d) if rate_n else None,
        duration_seconds=None if math.isnan(duration) else duration,
        stream_index=stream,
        sample_aspect_ratio=Fraction(sar_n, sar_d),
        frames_from_header=_present(frames),
        other_streams=tuple(_unpack_stream(one, chosen=stream) for one in _STREAM.iter_unpack(others)),
    )
    return FoundVideo(facts, _present(first_pts), bool(enumerates))


# -- index

_PACKET = struct.Struct("<qqqII")


def pack_packets(packets: Sequence[PacketRecord]) -> bytes:
    return b"".join(
        _PACKET.pack(_absent(p.pts), _absent(p.dts), _absent(p.position), p.size_bytes, p.flags)
        for p in packets
    )


def unpack_packets(payload: bytes, first_ordinal: int) -> list[PacketRecord]:
    if len(payload) % _PACKET.size:
        raise DecoderProtocolError("half a packet record")
    numbered = enumerate(_PACKET.iter_unpack(payload), first_ordinal)
    return [
        PacketRecord(ordinal, _present(pts), _present(dts), _present(position), size, flags & 0xFF)
        for ordinal, (pts, dts, position, size, flags) in numbered
    ]


_EVIDENCE = struct.Struct("<qqI128s")


def pack_evidence(evidence: Evidence) -> bytes:
    reason = _text(evidence.reason, 128)
    return _EVIDENCE.pack(evidence.place, _absent(evidence.position), evidence.count, reason)


def unpack_evidence(payload: bytes) -> Evidence:
    place, position, count, raw = _unpack(_EVIDENCE, payload)
    reason = raw.rstrip(b"\0").decode("ascii", "replace")
    if place < 0 or not count or not reason.isprintable():
        raise DecoderProtocolError("impossible evidence")
    return Evidence(place, _present(position), count, reason)


_INDEX_END = struct.Struct("<IIqqdI")


@dataclass(frozen=True, slots=True)
class IndexEnd:
    """How a pass over the packets ended."""

    read_errors: int  # how often reading failed and went on
    gave_up: bool  # reading failed too often: the rest is unread
    lost: int  # frames that the container lists, but does not hold or that the decoder did not return
    truncated: bool
    leading: int = 0  # of counted frames: shown before the first keyframe
    claimed_seconds: float | None = None  # the container's duration, if its frames end well before

    def pack(self) -> bytes:
        claimed = math.nan if self.claimed_seconds is None else self.claimed_seconds
        counts = (self.read_errors, self.gave_up, self.lost, self.leading)
        return _INDEX_END.pack(*counts, claimed, self.truncated)

    @classmethod
    def unpack(cls, payload: bytes) -> IndexEnd:
        errors, gave_up, missing, leading, claimed, truncated = _unpack(_INDEX_END, payload)
        if missing < 0 or leading < 0:
            raise DecoderProtocolError("a negative count")
        seconds = None if math.isnan(claimed) else claimed
        return cls(errors, bool(gave_up), missing, bool(truncated), leading, seconds)


# -- decoding

_DECODE = struct.Struct("<qqIIIIII")


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """What one child decodes of a segment."""

    entry: Entry
    packet_count: int
    pts: npt.NDArray[np.int64]  # (n,)
    wanted: npt.NDArray[np.bool_]  # (n,)
    frames_before: int | None
    width: int  # of the pictures asked for, as displayed
    height: int
    batch_size: int
    slot_count: int
    skipped: tuple[int, ...] = ()  # ordinals of packets that are not to be decoded

    @property
    def frame_bytes(self) -> int:
        return self.width * self.height * 3

    def pack(self) -> bytes:
        head = _DECODE.pack(
            self.packet_count,
            _absent(self.frames_before),
            self.width,
            self.height,
            self.batch_size,
            self.slot_count,
            len(self.pts),
            len(self.skipped),
        )
        numbers = np.concatenate((self.pts, np.array(self.skipped, dtype=np.int64))).astype("<i8")
        return _pack_entry(self.entry) + head + numbers.tobytes() + self.wanted.tobytes()

    @classmethod
    def unpack(cls, payload: bytes) -> DecodeRequest:
        head = _DECODE.unpack_from(payload, _ENTRY.size)
        packets, before, width, height, batch, slots, count, skips = head
        at = _ENTRY.size + _DECODE.size
        numbers = np.frombuffer(payload, dtype="<i8", count=count + skips, offset=at)
        wanted = np.frombuffer(payload, dtype=np.bool_, offset=at + numbers.nbytes)
        entry, skipped = _unpack_entry(payload), tuple(numbers[count:].tolist())
        pts, before = numbers[:count], _present(before)
        return cls(entry, packets, pts, wanted, before, width, height, batch, slots, skipped)


_BATCH = struct.Struct("<IIII")
_FRAME = struct.Struct("<qI")


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """A full slot of the ring: `ranks` are positions among the request's frames."""

    slot: int
    source_width: int  # displayed size of the pictures before scaling
    source_height: int
    pts: tuple[int, ...]
    ranks: tuple[int, ...]

    def pack(self) -> bytes:
        head = _BATCH.pack(self.slot, self.source_width, self.source_height, len(self.ranks))
        return head + b"".join(_FRAME.pack(p, r) for p, r in zip(self.pts, self.ranks, strict=True))

    @classmethod
    def unpack(cls, payload: bytes) -> BatchMessage:
        if len(payload) < _BATCH.size:
            raise DecoderProtocolError("half a batch")
        slot, width, height, count = _BATCH.unpack_from(payload)
        if len(payload) != _BATCH.size + count * _FRAME.size or count == 0:
            raise DecoderProtocolError("a batch of another length")
        if not (0 < width < MAX_FRAME_SIDE and 0 < height < MAX_FRAME_SIDE):
            raise DecoderProtocolError("an impossible picture size")
        frames = list(_FRAME.iter_unpack(payload[_BATCH.size :]))
        return cls(slot, width, height, tuple(f[0] for f in frames), tuple(f[1] for f in frames))


def unpack_statuses(payload: bytes, count: int) -> npt.NDArray[np.uint8]:
    """Return the FrameStatus of each of the request's `count` frames, (count,) uint8."""
    if len(payload) != count:
        raise DecoderProtocolError("statuses of another number of frames")
    statuses = np.frombuffer(payload, dtype=np.uint8)
    if len(statuses) and int(statuses.max()) > max(FrameStatus):
        raise DecoderProtocolError("an unknown status")
    return statuses


@dataclass(frozen=True, slots=True)
class CountRequest:
    """Count the frames that the decoder returns from an entry on."""

    entry: Entry
    skipped: tuple[int, ...] = ()

    def pack(self) -> bytes:
        return _pack_entry(self.entry) + np.array(self.skipped, dtype="<i8").tobytes()

    @classmethod
    def unpack(cls, payload: bytes) -> CountRequest:
        skipped = np.frombuffer(payload, dtype="<i8", offset=_ENTRY.size)
        return cls(_unpack_entry(payload), tuple(skipped.tolist()))


def pack_frames(pts: Sequence[int | None]) -> bytes:
    return np.array([_absent(value) for value in pts], dtype="<i8").tobytes()


def unpack_frames(payload: bytes) -> list[int | None]:
    if len(payload) % 8:
        raise DecoderProtocolError("half a frame record")
    return [_present(value) for value in np.frombuffer(payload, dtype="<i8").tolist()]
