"""ASF (WMV): data packets of one size, between a header that counts them and indexes.

Source: Advanced Systems Format specification, revision 01.20.05: sections 2 (objects), 3.2 (file
properties) and 5 (data).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np

from app.video.child.walkers.walker import BLOCK_BYTES, MAPPED_BYTES, Note, Walker, map_block

HEADER_BYTES, _OBJECT_BYTES, _DATA_BYTES = 30, 24, 50
_PROPERTIES_BYTES = 104
_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_INDEXES = (  # what may follow the data: simple index, index, media object index, time code index
    bytes.fromhex("90080033b1e5cf1189f400a0c90349cb"),
    bytes.fromhex("d329e2d6da35d111903400a0c90349be"),
    bytes.fromhex("f803b1fead12644c840f2a1d2f7ad48c"),
    bytes.fromhex("d03fb73c4a0c0348953dedf7b6228f0c"),
)
_MAX_OBJECTS = 1000
_LEAST_PACKET_BYTES = 32  # more than its head may take
_MAX_PACKET_BYTES = BLOCK_BYTES
_LIVE = 1  # flag: the header was written before the data, so its counts and sizes mean nothing
_CORRECTION = b"\x82\0\0"  # error correction data follows: two bytes, without content
_PACKETS_IN_A_ROW = 3  # that prove that bytes are data packets
_SIZES = (0, 1, 2, 4)  # of a field in bytes, by the two bits that encode it
_NO_PACKET = "bytes that are no data packet"
_TOO_LONG = "a payload that ends behind its packet"


class AsfWalker(Walker):
    """Check data packets, and that their payloads form whole media objects, one after the other.

    Payloads are checked if packets begin with error correction data, as nearly all do, and nothing is checked
    if the header does not declare the packets' size. What follows the data is no evidence.
    """

    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._objects = _MediaObjects()
        self._is_over = True  # unless the header shows where data packets of a fixed size are
        header_end = int.from_bytes(os.pread(descriptor, 8, 16), "little")
        properties = find_object(descriptor, (_PROPERTIES,), HEADER_BYTES, min(header_end, file_bytes))
        data = find_object(descriptor, (_DATA,), header_end, file_bytes)
        head = b"" if properties is None else os.pread(descriptor, _PROPERTIES_BYTES, properties)
        if data is None or len(head) < _PROPERTIES_BYTES:
            return
        flags, least, most = struct.unpack_from("<III", head, 88)
        if least != most or not _LEAST_PACKET_BYTES <= least <= _MAX_PACKET_BYTES:
            return
        self._is_over = False
        self._packet_bytes: int = least
        self._at = data + _DATA_BYTES
        data_bytes = int.from_bytes(os.pread(descriptor, 8, data + 16), "little")
        is_known = data_bytes > _DATA_BYTES and not flags & _LIVE
        self._end = data + data_bytes if is_known else None  # of the data, bytes into the file
        self._has_heads = self._is_element(self._at)

    def _follow(self, end: int) -> None:
        while self._at < end and not self._is_lost:
            data_end = self._file_bytes if self._end is None else min(self._end, self._file_bytes)
            count = min(data_end - self._at, MAPPED_BYTES) // self._packet_bytes
            if not count:
                # Less than a packet is left of the data; what follows the data is of no interest.
                if self._end is None and self._at < data_end and not self._is_index():
                    self._note(self._at, "the file ends inside a data packet")
                self._at = self._file_bytes
                return
            data = map_block(self._descriptor, self._at, self._at + count * self._packet_bytes)
            count = len(data) // self._packet_bytes
            heads = np.ndarray((count,), "<u4", data, 0, (self._packet_bytes,))
            is_packet = (heads & 0xFFFFFF == int.from_bytes(_CORRECTION, "little")) | (not self._has_heads)
            whole = count if is_packet.all() else int(is_packet.argmin())
            if self._has_heads:
                for at in range(0, whole * self._packet_bytes, self._packet_bytes):
                    if reason := self._objects.fault_in(data[at : at + self._packet_bytes]):
                        self._note(self._at + at, reason)
            if whole == count:
                self._at = self._at + len(data) if count else self._file_bytes
                continue
            self._at += whole * self._packet_bytes
            if self._end is None and self._is_index():
                self._at = self._file_bytes
                return
            self._end = None  # bytes may have been lost or inserted
            self._objects = _MediaObjects()  # what is lost here is noted once
            self._lose(self._at, _NO_PACKET)

    def _is_index(self) -> bool:
        return self._window.get(self._at, 16) in _INDEXES

    def _search(self) -> None:
        self._find((_CORRECTION,))

    def _is_element(self, position: int) -> bool:
        places = range(position, position + _PACKETS_IN_A_ROW * self._packet_bytes, self._packet_bytes)
        heads = [self._window.get(place, len(_CORRECTION)) for place in places if place < self._file_bytes]
        return all(head == _CORRECTION[: len(head)] for head in heads)

    def _check_end(self) -> None:
        if self._end is not None and self._end > self._file_bytes:
            self._note(self._file_bytes, "the file ends before its last data packet")


class _MediaObjects:
    """Follow the frames of each stream through the payloads that hold their pieces (5.2.2, 5.2.3)."""

    def __init__(self) -> None:
        self._latest: dict[int, tuple[int, int, int]] = {}  # by stream: object's number, piece's end, size

    def fault_in(self, packet: memoryview) -> str | None:
        """Check the next data packet, and return what is wrong with it, if anything is."""
        flags, sizes = packet[3], packet[4]
        number_bytes, offset_bytes, replicated_bytes = (_SIZES[sizes >> n & 3] for n in (4, 2, 0))
        padding_at = 5 + _SIZES[flags >> 5 & 3] + _SIZES[flags >> 1 & 3]
        at = padding_at + _SIZES[flags >> 3 & 3]
        end = len(packet) - int.from_bytes(packet[padding_at:at], "little")
        at += 6  # send time, duration
        count, length_bytes = 1, 0
        if flags & 1:
            count, length_bytes = packet[at] & 63, _SIZES[packet[at] >> 6]
            at += 1
        for _ in range(count):
            if at + 1 > end:
                return _TOO_LONG
            stream = packet[at] & 127
            offset_at = at + 1 + number_bytes
            replicated_at = offset_at + offset_bytes
            number = int.from_bytes(packet[at + 1 : offset_at], "little")
            offset = int.from_bytes(packet[offset_at:replicated_at], "little")
            at = replicated_at + replicated_bytes
            replicated = int.from_bytes(packet[replicated_at:at], "little")
            size = int.from_bytes(packet[at : at + 4], "little") if replicated >= 8 else 0
            at += replicated
            length = int.from_bytes(packet[at : at + length_bytes], "little") if flags & 1 else end - at
            at += length_bytes
            if length < 0 or at + length > end:
                return _TOO_LONG
            if not stream:
                return "a payload of no stream"
            at += length
            before = self._latest.pop(stream, None)
            if replicated == 1:  # several small objects: no offsets
                continue
            self._latest[stream] = number, offset + length, size
            if before is None:
                continue
            last_number, last_end, last_size = before
            is_next = (number - last_number - 1) % 256**number_bytes == 0 and last_end == last_size
            if (number, offset) != (last_number, last_end) if offset else not is_next:
                return "a part of a media object is missing"
        return None


def find_object(descriptor: int, names: Sequence[bytes], start: int, end: int) -> int | None:
    """Return where the first object with one of these GUIDs is, bytes into the file; None if nowhere."""
    at = start
    for _ in range(_MAX_OBJECTS):
        head = os.pread(descriptor, _OBJECT_BYTES, at) if at + _OBJECT_BYTES <= end else b""
        if head[:16] in names:
            return at
        size = int.from_bytes(head[16:], "little")
        if size < _OBJECT_BYTES:
            return None
        at += size
    return None
