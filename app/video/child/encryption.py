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

from av.video.stream import VideoStream

from app.video.child.headers import Header
from app.video.child.walkers.asf import HEADER_BYTES as ASF_HEADER_BYTES
from app.video.child.walkers.asf import find_object
from app.video.child.walkers.mpegts import PACKET_BYTES, STRIDES, SYNC, SYNCS_IN_A_ROW

_WINDOW_BYTES = 1024 * 1024  # read at the beginning, in the middle and near the end
_SAMPLE_AES_H264 = 0xDB  # stream_type
_SAMPLE_AES_MARK = b"zavc"
_MARKED_BY = (0x05, 0x0F)  # descriptors: registration, private data indicator
_PES_PIDS = range(0x10, 0x1FFF)
_MOST_CLEAR = 1 / 10  # of a scrambled stream's packets

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_ENCRYPTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),  # Content Encryption
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),  # Extended Content Encryption
    bytes.fromhex("338505438169e6499b74ad12cb86d58c"),  # Advanced Content Encryption
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
    head = os.pread(descriptor, ASF_HEADER_BYTES, 0)
    end = min(header.file_bytes, int.from_bytes(head[16:24], "little"))
    has_header = head[:16] == _ASF_HEADER
    return has_header and find_object(descriptor, _ASF_ENCRYPTION, ASF_HEADER_BYTES, end) is not None


def _is_scrambled(descriptor: int, file_bytes: int, pid: int) -> bool:
    """Whether a transport stream's tables declare the stream encrypted, or nearly all of its packets are."""
    scrambled = packets = 0
    tables = _Tables()
    for start in sorted({0, file_bytes // 2, max(0, file_bytes - _WINDOW_BYTES)}):
        data = os.pread(descriptor, _WINDOW_BYTES, start)
        first, stride = _first_packet(data)
        for at in range(first, len(data) - PACKET_BYTES + 1, stride):
            sync, head, control = struct.unpack_from(">BHB", data, at)
            if sync != SYNC or head & 0x8000:  # lost, or marked as damaged
                continue
            begin = 5 + data[at + 4] if control & 0x20 else 4
            payload = data[at + begin : at + PACKET_BYTES] if control & 0x10 else b""
            is_scrambled = bool(control & 0xC0)
            if payload and not is_scrambled:
                tables.take(head & 0x1FFF, payload, begins=bool(head & 0x4000))
            if head & 0x1FFF == pid and payload:
                packets += 1
                scrambled += is_scrambled
    return pid in tables.encrypted_pids or (packets > 0 and packets - scrambled <= packets * _MOST_CLEAR)


def _first_packet(data: bytes) -> tuple[int, int]:
    """Return where the first of several packets in a row starts, and their stride; the end if none does."""
    at = data.find(SYNC)
    while 0 <= at < 2 * STRIDES[-1] * SYNCS_IN_A_ROW:
        for stride in STRIDES:
            row = data[at : at + stride * SYNCS_IN_A_ROW : stride]
            if row == bytes([SYNC]) * SYNCS_IN_A_ROW:
                return at, stride
        at = data.find(SYNC, at + 1)
    return len(data), PACKET_BYTES


class _Tables:
    """Read from a transport stream's program tables which streams are encrypted."""

    def __init__(self) -> None:
        self.encrypted_pids: set[int] = set()
        self._map_pids: set[int] = {0}
        self._sections: dict[int, bytes] = {}  # incomplete ones, by PID

    def take(self, map_pid: int, payload: bytes, *, begins: bool) -> None:
        """Read a packet that is not scrambled. `begins`: a section begins in it."""
        if map_pid not in self._map_pids:
            return
        if begins:
            self._sections[map_pid] = payload[1 + payload[0] :]
        elif map_pid in self._sections:
            self._sections[map_pid] += payload
        section = self._sections.get(map_pid, b"")
        length = 3 + (int.from_bytes(section[1:3], "big") & 0xFFF)
        if len(section) < max(12, length):
            return
        del self._sections[map_pid]
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
                end = at + 5 + (length & 0xFFF)
                descriptors, at = section[at + 5 : end], end
                is_marked = kind == _SAMPLE_AES_H264
                while len(descriptors) >= 2:
                    is_marked |= descriptors[0] in _MARKED_BY and descriptors[2:6] == _SAMPLE_AES_MARK
                    descriptors = descriptors[2 + descriptors[1] :]
                if is_marked:
                    self.encrypted_pids.add(pid & 0x1FFF)
