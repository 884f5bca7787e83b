"""MPEG program streams: packs, system headers and PES packets, one behind the other.

Sources: ISO/IEC 13818-1, 2.5.3 (MPEG-2); ISO/IEC 11172-1, 2.4.3 (MPEG-1).
"""

from __future__ import annotations

import os

from app.video.walkers.walker import Note, StrideWalker

_START = b"\0\0\1"
_END_CODE = b"\0\0\1\xb9"
_PACK, _SYSTEM = 0xBA, 0xBB  # what follows them up to 0xFF are PES packets of all streams
_HEAD_BYTES = 14  # of a pack at most, without its stuffing; of the others less
_LENGTH_BYTES = 6  # a start code and a length
_MAX_PACKET_BYTES = 65535 + _LENGTH_BYTES
_MAX_PADDING_BYTES = 4096  # zeros between packs: two sectors
_NO_PACKET = "bytes that are no pack and no packet"


class MpegPsWalker(StrideWalker):
    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._is_lost = not self._is_element(0)
        self._last = 0  # the last packet, bytes into the file
        self._ended_at = -1  # behind the last end code: any number of zeros may follow
        self._zeros_from = self._zeros_to = -1  # the last run of zeros

    def _follow(self, end: int) -> None:
        window = self._window
        data, start, at, last = window.data, window.start, self._at, self._last
        elements = 0
        while at < end:
            offset = at - start
            if offset < 0 or offset + _HEAD_BYTES > len(data):
                data, start, offset = window.load(at), at, 0
            elements += 1
            length = _length(data, offset)
            if not length:
                break
            last = at
            at += length
        self._elements += elements
        self._at, self._last = at, last
        if at < end:
            self._read_other()

    def _read_other(self) -> None:
        """Move over what may stand between packets: an end code, zeros. Lose the chain at anything else."""
        at = self._at
        data = self._window.load(at)
        if data.startswith(_END_CODE):
            self._at = self._ended_at = at + len(_END_CODE)
            return
        if data.startswith(_START) and len(data) < _HEAD_BYTES:
            self._note(at, "the file ends inside a packet")
            self._at = self._file_bytes
            return
        zeros = len(data) - len(data.lstrip(b"\0"))
        if data[zeros : zeros + 1] == b"\1":
            zeros -= 2  # of the start code
        if zeros <= 0:
            self._lose(at, _NO_PACKET, search_from=self._last + 1)
            return
        if at != self._zeros_to:
            self._zeros_from = at
        self._at = self._zeros_to = at + zeros
        is_padding = self._zeros_from == self._ended_at
        if self._at - self._zeros_from > _MAX_PADDING_BYTES and not is_padding:
            self._lose(self._zeros_from, "zeros in place of packets", search_from=self._at)

    def _search(self) -> None:
        is_start = self._at == 0 and not self._notes
        self._find((_START,), self._is_element)
        if not is_start:
            return
        is_mid_packet = not self._is_lost and self._at < _MAX_PACKET_BYTES
        if not is_mid_packet or not any(os.pread(self._descriptor, self._at, 0)):
            self._note(0, _NO_PACKET)  # else a recording begins inside a packet

    def _is_element(self, position: int) -> bool:
        """Whether a pack or packet is at `position`, and another one behind it."""
        after = position
        for _ in range(2):
            length = _length(self._window.get(after, _HEAD_BYTES), 0)
            if not length:
                return False
            after += length
            if after >= self._file_bytes:
                return after == self._file_bytes
        return True

    def _check_end(self) -> None:
        if self._at > self._file_bytes:
            self._note(self._last, "the file ends inside a packet")


def _length(data: bytes, offset: int) -> int:
    """Return the bytes of the pack or packet at `offset`; 0 if there is none, or no room for its head."""
    if data[offset : offset + 3] != _START or offset + _LENGTH_BYTES > len(data):
        return 0
    code = data[offset + 3]
    if code >= _SYSTEM:
        return _LENGTH_BYTES + (data[offset + 4] << 8 | data[offset + 5])
    if code == _PACK:
        if data[offset + 4] >> 6 == 1 and offset + _HEAD_BYTES <= len(data):
            return _HEAD_BYTES + (data[offset + 13] & 7)
        return 12 if data[offset + 4] >> 4 == 2 else 0
    return 0
