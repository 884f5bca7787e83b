"""The messages between host and decoder child: a head of eight bytes (kind, length) and a payload.

The child trusts the host, whose requests are pickled. The host trusts none of the child's messages: they have
fixed layouts, little endian, and every field is checked. A decoder that was taken over may lie about its own
video, and about nothing else.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any, Self

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
    _require(number in _MESSAGES and length <= MAX_MESSAGE_BYTES, "an unknown or oversized message")
    return _MESSAGES[number], length


def _require(is_right: bool, fault: str) -> None:
    if not is_right:
        raise DecoderProtocolError(fault)


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    _require(len(payload) == layout.size, f"{len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)


def _absent(value: int | None) -> int:
    return _NONE if value is None else value


def _present(value: int) -> int | None:
    return None if value == _NONE else value


def _text(value: str, size: int) -> bytes:
    return value.encode("ascii", "replace")[:size]


def _name(raw: bytes) -> str:
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    _require(all(char.isalnum() or char in "_-,. " for char in text), "a name with odd characters")
    return text


# -- start of a child

_READY = struct.Struct("<i???")
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
        return _READY.pack(*astuple(self.lock_down)) + self.ffmpeg_versions.encode("ascii")

    @classmethod
    def unpack(cls, payload: bytes) -> Ready:
        _require(0 < len(payload) - _READY.size <= _MAX_VERSIONS_BYTES, "a greeting of another length")
        lock_down = LockDown(*_READY.unpack_from(payload))
        _require(0 <= lock_down.landlock_abi < 1000, "Landlock ABI out of range")
        return cls(lock_down, _name(payload[_READY.size :]))


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
        _require(0 <= len(payload) - _FAULT.size <= _MAX_CODECS_BYTES, "a fault of another length")
        code, limit_value, value, limit, codec = _FAULT.unpack_from(payload)
        supported = tuple(filter(None, _name(payload[_FAULT.size :]).split(",")))
        _require(code in [*FaultCode], "an unknown fault")
        return cls(FaultCode(code), _name(limit), limit_value, value, _name(codec), supported)


# -- facts

_STREAM_KINDS = tuple(StreamKind)
_MAX_OTHER_STREAMS = 32
_STREAM = struct.Struct("<II32sII16s??")
_FACTS = struct.Struct("<64s32s32sIII?qqqqqqdIq?")


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
    _require(index <= _MAX_STREAM_INDEX and index != chosen, "an impossible stream")
    _require(kind < len(_STREAM_KINDS) and max(width, height) <= MAX_FRAME_SIDE, "an impossible stream")
    flags = (is_default, is_picture)
    return OtherStream(index, _STREAM_KINDS[kind], _name(codec), width, height, _name(language), *flags)


def unpack_facts(payload: bytes) -> FoundVideo:
    payload, others = payload[: _FACTS.size], payload[_FACTS.size :]
    _require(len(payload) == _FACTS.size and not len(others) % _STREAM.size, "facts of another length")
    _require(len(others) <= _MAX_OTHER_STREAMS * _STREAM.size, "too many streams")
    (container, codec, pixel_format, width, height, rotation, mirrored, *numbers) = _FACTS.unpack(payload)
    *rates, duration, stream, first_pts, enumerates = numbers
    tick_n, tick_d, rate_n, rate_d, sar_n, sar_d = rates
    _require(0 < width < MAX_FRAME_SIDE and 0 < height < MAX_FRAME_SIDE, "an impossible picture size")
    _require(rotation < 360, "an impossible orientation")
    _require(min(tick_n, tick_d, rate_d, sar_n, sar_d) > 0 and rate_n >= 0, "impossible rates")
    _require(stream <= _MAX_STREAM_INDEX, "an impossible stream")
    _require(math.isnan(duration) or 0 <= duration < 1e13, "an impossible duration")
    facts = VideoFacts(
        container=_name(container),
        codec=_name(codec),
        pixel_format=_name(pixel_format),
        width=width,
        height=height,
        rotation_degrees=rotation,
        mirrored=mirrored,
        time_base=Fraction(tick_n, tick_d),
        frame_rate=Fraction(rate_n, rate_d) if rate_n else None,
        duration_seconds=None if math.isnan(duration) else duration,
        stream_index=stream,
        sample_aspect_ratio=Fraction(sar_n, sar_d),
        other_streams=tuple(_unpack_stream(one, chosen=stream) for one in _STREAM.iter_unpack(others)),
    )
    return FoundVideo(facts, _present(first_pts), enumerates)


# -- index

_PACKET = struct.Struct("<qqqII")


def pack_packets(packets: Sequence[PacketRecord]) -> bytes:
    return b"".join(
        _PACKET.pack(_absent(p.pts), _absent(p.dts), _absent(p.position), p.size_bytes, p.flags)
        for p in packets
    )


def unpack_packets(payload: bytes, first_ordinal: int) -> list[PacketRecord]:
    _require(not len(payload) % _PACKET.size, "half a packet record")
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
    _require(place >= 0 and count > 0 and reason.isprintable(), "impossible evidence")
    return Evidence(place, _present(position), count, reason)


_INDEX_END = struct.Struct("<I?q?qd")


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
        return _INDEX_END.pack(
            self.read_errors, self.gave_up, self.lost, self.truncated, self.leading, claimed
        )

    @classmethod
    def unpack(cls, payload: bytes) -> IndexEnd:
        errors, gave_up, lost, truncated, leading, claimed = _unpack(_INDEX_END, payload)
        _require(lost >= 0 and leading >= 0, "a negative count")
        return cls(errors, gave_up, lost, truncated, leading, None if math.isnan(claimed) else claimed)


# -- decoding


class _Request:
    """What a command of the host carries."""

    __slots__ = ()

    def pack(self) -> bytes:
        return pickle.dumps(self)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the request. For the child only: what a child sends must never be unpickled."""
        request: Self = pickle.loads(payload)  # noqa: S301 - the host's
        return request


@dataclass(frozen=True, slots=True)
class CountRequest(_Request):
    """Count the frames that the decoder returns from an entry on."""

    entry: Entry
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeRequest(_Request):
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
        slot, width, height, count = _unpack(_BATCH, payload[: _BATCH.size])
        is_whole = len(payload) == _BATCH.size + count * _FRAME.size
        _require(is_whole and count > 0, "a batch of another length")
        _require(0 < width < MAX_FRAME_SIDE and 0 < height < MAX_FRAME_SIDE, "an impossible picture size")
        frames = list(_FRAME.iter_unpack(payload[_BATCH.size :]))
        return cls(slot, width, height, tuple(f[0] for f in frames), tuple(f[1] for f in frames))


def unpack_statuses(payload: bytes, count: int) -> npt.NDArray[np.uint8]:
    """Return the FrameStatus of each of the request's `count` frames, (count,) uint8."""
    _require(len(payload) == count, "statuses of another number of frames")
    _require(max(payload, default=0) <= max(FrameStatus), "an unknown status")
    return np.frombuffer(payload, dtype=np.uint8)


def pack_frames(pts: Sequence[int | None]) -> bytes:
    return np.array([_absent(value) for value in pts], dtype="<i8").tobytes()


def unpack_frames(payload: bytes) -> list[int | None]:
    _require(not len(payload) % 8, "half a frame record")
    return [_present(value) for value in np.frombuffer(payload, dtype="<i8").tolist()]
