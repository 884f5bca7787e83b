"""Whether the chosen video stream is encrypted, according to its container.

A decoder conceals what it cannot read, and may return grey pictures for every frame of an encrypted video, so
this is checked before decoding. Only the stream that is read counts: sound may be encrypted beside clear
video, and key data without a track that needs it proves nothing.

Sources: ISO/IEC 14496-12 8.12 (`encv`); ISO/IEC 13818-1 2.4.3.2, 2.4.4 (scrambling, tables); Apple, MPEG-2
Stream Encryption Format for HTTP Live Streaming; ASF specification 3.10, 3.14, 3.15.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from av.video.stream import VideoStream

from app.video.child.headers import Header

_SYNC = 0x47
_PACKET_BYTES = 188
_STRIDES = (188, 192, 204)  # plain, with a time stamp before each packet, with check bytes after it
_WINDOW_BYTES = 1024 * 1024  # read at the beginning, in the middle and near the end
_SYNC_RUN = 5  # packets in a row that prove the stride
_SAMPLE_AES_H264 = 0xDB  # stream_type
_SAMPLE_AES_MARK = b"zavc"
_MARKED_BY = (0x05, 0x0F)  # descriptors: registration, private data indicator
_PES_PIDS = range(0x10, 0x1FFF)
_MOST_CLEAR = 1 / 10  # of a scrambled stream's packets

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_HEADER_BYTES = 30
_MAX_ASF_OBJECTS = 1000
_ASF_ENCRYPTION = frozenset(
    map(
        bytes.fromhex,
        (
            "fbb3112223bdd211b4b700a0c955fc6e",  # Content Encryption
            "14e68a292226174cb935dae07ee9289c",  # Extended Content Encryption
            "338505438169e6499b74ad12cb86d58c",  # Advanced Content Encryption
        ),
    )
)


def is_encrypted(stream: VideoStream, container: str, header: Header, descriptor: int) -> bool:
    """Whether `stream` is encrypted. `container` is FFmpeg's name."""
    if "enc_key_id" in stream.metadata:  # Matroska's ContentEncryption, as FFmpeg reports it
        return True
    if header.tracks:
        return stream.index < len(header.tracks) and header.tracks[stream.index].is_encrypted
    if container == "mpegts":
        return _is_scrambled(descriptor, header.file_bytes, stream.id)
    if not container.startswith("asf"):
        return False
    head = os.pread(descriptor, _ASF_HEADER_BYTES, 0)
    if head[:16] != _ASF_HEADER or len(head) < _ASF_HEADER_BYTES:
        return False
    end = min(header.file_bytes, int.from_bytes(head[16:24], "little"))
    at = _ASF_HEADER_BYTES
    for _ in range(_MAX_ASF_OBJECTS):
        one = os.pread(descriptor, 24, at)
        if len(one) < 24 or at >= end:
            return False
        if one[:16] in _ASF_ENCRYPTION:
            return True
        at += max(24, int.from_bytes(one[16:], "little"))
    return False


class _TsPacket(NamedTuple):
    pid: int
    starts_unit: bool
    is_scrambled: bool
    payload: bytes


def _is_scrambled(descriptor: int, file_bytes: int, pid: int) -> bool:
    """Whether a transport stream's tables declare the stream encrypted, or nearly all of its packets are."""
    scrambled = packets = 0
    tables = _Tables()
    for start in sorted({0, file_bytes // 2, max(0, file_bytes - _WINDOW_BYTES)}):
        data = os.pread(descriptor, _WINDOW_BYTES, start)
        first, stride = _first_packet(data)
        for at in range(first, len(data) - _PACKET_BYTES + 1, stride):
            sync, head, control = struct.unpack_from(">BHB", data, at)
            if sync != _SYNC or head & 0x8000:  # lost, or marked as damaged
                continue
            begin = 5 + data[at + 4] if control & 0x20 else 4
            payload = data[at + begin : at + _PACKET_BYTES] if control & 0x10 else b""
            packet = _TsPacket(head & 0x1FFF, bool(head & 0x4000), bool(control & 0xC0), payload)
            tables.take(packet)
            if packet.pid == pid and payload:
                packets += 1
                scrambled += packet.is_scrambled
    return pid in tables.encrypted_pids or (packets > 0 and packets - scrambled <= packets * _MOST_CLEAR)


def _first_packet(data: bytes) -> tuple[int, int]:
    """Return where the first of several packets in a row starts, and their stride; the end if none does."""
    at = data.find(_SYNC)
    while 0 <= at < 2 * _STRIDES[-1] * _SYNC_RUN:
        for stride in _STRIDES:
            row = data[at : at + stride * _SYNC_RUN : stride]
            if row == bytes([_SYNC]) * _SYNC_RUN:
                return at, stride
        at = data.find(_SYNC, at + 1)
    return len(data), _PACKET_BYTES


class _Tables:
    """Read from a transport stream's program tables which streams are encrypted."""

    def __init__(self) -> None:
        self.encrypted_pids: set[int] = set()
        self._map_pids: set[int] = {0}
        self._sections: dict[int, bytes] = {}  # incomplete ones, by PID

    def take(self, packet: _TsPacket) -> None:
        if packet.pid not in self._map_pids or packet.is_scrambled or not packet.payload:
            return
        if packet.starts_unit:
            self._sections[packet.pid] = packet.payload[1 + packet.payload[0] :]
        elif packet.pid in self._sections:
            self._sections[packet.pid] += packet.payload
        section = self._sections.get(packet.pid, b"")
        length = 3 + (int.from_bytes(section[1:3], "big") & 0xFFF)
        if len(section) < max(12, length):
            return
        del self._sections[packet.pid]
        table_id, section = section[0], section[: length - 4]  # less its check sum
        if table_id == 0:
            for at in range(8, len(section) - 3, 4):
                number, pid = struct.unpack_from(">HH", section, at)
                if number and pid & 0x1FFF in _PES_PIDS:
                    self._map_pids.add(pid & 0x1FFF)
        elif table_id == 2 and len(section) >= 12:
            at = 12 + (int.from_bytes(section[10:12], "big") & 0xFFF)
            while at + 5 <= len(section):
                kind, pid, length = struct.unpack_from(">BHH", section, at)
                at, end = at + 5, at + 5 + (length & 0xFFF)
                is_marked = kind == _SAMPLE_AES_H264
                descriptors = section[at:end]
                while len(descriptors) >= 2:
                    is_mark = descriptors[0] in _MARKED_BY and descriptors[2:6] == _SAMPLE_AES_MARK
                    is_marked |= is_mark
                    descriptors = descriptors[2 + descriptors[1] :]
                if is_marked:
                    self.encrypted_pids.add(pid & 0x1FFF)
                at = end
