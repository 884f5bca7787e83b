"""MPEG program streams: consecutive packs, system headers and PES packets.

Sources: ISO/IEC 13818-1, 2.5.3 (MPEG-2); ISO/IEC 11172-1, 2.4.3 (MPEG-1).
"""

from __future__ import annotations

import os

import numpy as np

from app.video.child.walkers.walker import MAPPED_BYTES, Note, Walker, map_block

_START = b"\0\0\1"
_END_CODE = b"\0\0\1\xb9"
_PACK, _SYSTEM = 0xBA, 0xBB  # what follows them up to 0xFF are PES packets of all streams
_MOST_IN_A_SECTOR = 8  # packs and packets, where sectors are checked all at once
_SAMPLED = 24  # packs and packets that show how large sectors are
_HEAD_BYTES = 14  # of a pack at most, without its stuffing; of the others less
_LENGTH_BYTES = 6  # a start code and a length
_MAX_PACKET_BYTES = 65535 + _LENGTH_BYTES
_MAX_PADDING_BYTES = 4096  # zeros between packs: two sectors
_NO_PACKET = "bytes that are no pack and no packet"


class MpegPsWalker(Walker):
    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._is_lost = not self._is_element(0)
        self._last = 0  # the last packet, bytes into the file
        self._ended_at = -1  # after the last end code: any number of zeros may follow
        self._zeros_from = self._zeros_to = -1  # the last run of zeros
        self._sector_bytes = 0  # 0 if there are none
        self._skips_at = 0  # sectors may be skipped from here on, bytes into the file

    def _follow(self, end: int) -> None:
        if self._at >= self._skips_at:
            # Move over sectors of one size that packets fill, all at once, except the last of them.
            block = map_block(self._descriptor, self._at, min(self._at + MAPPED_BYTES, self._file_bytes))
            size = self._sector_bytes or _sector_bytes(block)
            whole = _count_sectors(block, size) if size else 0
            is_worth_it = whole * size > len(block) // 8
            self._sector_bytes = size if is_worth_it else 0
            self._skips_at = self._at + (0 if is_worth_it else MAPPED_BYTES)
            self._at += max(whole - 1, 0) * size
            self._elements += whole
            del block  # not mapped for longer
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
        if at >= end:
            return
        # No packet: an end code, or zeros between packets. The chain is lost at anything else.
        data = window.load(at)
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
        self._find((_START,))
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


def _length(data: bytes | memoryview, offset: int) -> int:
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


def _sector_bytes(data: memoryview) -> int:
    """Return the bytes after which, again and again, a pack or packet begins; 0 if there is no such size."""
    places = [0]
    while len(places) < _SAMPLED and (length := _length(data, places[-1])):
        places.append(places[-1] + length)
    for size in places[1 : len(places) // 2]:
        if set(range(0, places[-1], size)) <= set(places):
            return size
    return 0


def _count_sectors(data: memoryview, size: int) -> int:
    """Return how many sectors of `size` bytes, filled by packs and packets, `data` begins with."""
    count = (len(data) - _HEAD_BYTES) // size
    heads = np.ndarray((len(data) - 7,), ">i8", data, 0, (1,))  # 8 bytes from each place on
    ends = np.arange(1, count + 1) * size
    at = ends - size
    rows = np.arange(count)
    for _ in range(_MOST_IN_A_SECTOR):
        found = heads[at[rows]]  # the lengths of what is there, as _length returns them
        codes = found >> 32
        is_packet = (codes >= 1 << 8 | _SYSTEM) & (codes < 1 << 9)
        lengths = np.where(is_packet, _LENGTH_BYTES + (found >> 16 & 0xFFFF), 0)
        packs = np.flatnonzero(codes == 1 << 8 | _PACK)
        marks, stuffing = found[packs] >> 24 & 0xFF, heads[at[rows][packs] + 6] & 7
        lengths[packs] = np.where(marks >> 6 == 1, _HEAD_BYTES + stuffing, 12 * (marks >> 4 == 2))
        at[rows] += lengths
        rows = np.flatnonzero(at < ends)
        if not len(rows):
            break
    return int(np.append(at == ends, False).argmin())
