"""MPEG transport streams: packets of one size, and a continuity counter a PID.

Source: ISO/IEC 13818-1, 2.4.3.2, 2.4.3.3 and 2.4.3.6. Packets of 192 bytes (M2TS: a time stamp of 4 bytes,
then the packet) and of 204 (16 bytes of error correction after it) are read as in FFmpeg's
libavformat/mpegts.c. A loss of 16 packets of a PID, or a multiple of 16, does not change its counter and is
not seen.

Where whole streams of one multiplexer are joined, such as the segments of a playlist, counters start again:
the first packet of the file comes once more, and each PID goes on as it began. That is no loss, unless the
time of the video leaps ahead, as it does if a segment is missing.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from app.video.child.walkers.walker import BLOCK_BYTES, Note, Walker, map_block

SYNC = 0x47
PACKET_BYTES = 188
_STAMP_BYTES = 4  # before a packet of M2TS
_M2TS_BYTES = _STAMP_BYTES + PACKET_BYTES
STRIDES = (PACKET_BYTES, _M2TS_BYTES, 204)  # plain, behind a time stamp, before check bytes
SYNCS_IN_A_ROW = 5  # that prove that bytes are a transport stream
_PIDS = 8192
_NULL_PID = 0x1FFF
_ERROR = 1 << 23  # transport_error_indicator; in a head, the first 32 bits of a packet
_SYNC_OR_ERROR = 0xFF << 24 | _ERROR
_START = 1 << 22  # payload_unit_start_indicator
_SCRAMBLED = 3 << 6
_HAS_FIELD = 1 << 5
_HAS_PAYLOAD = 1 << 4
_WRAPS = (1 << 32) - 15  # from a counter of 15 to one of 0
_MARKED_TOGETHER = 8192  # packets; the marked ones among them get one note
_BLOCK_PACKETS = 3 * _MARKED_TOGETHER  # 4.6 MB: with fewer, calls cost more; more do not fit in the cache

_NOTHING = np.zeros(0, np.uint8)

_TABLES = (0x00, 0x11)  # PIDs of what a stream begins with: program association, service description
_VIDEO_STREAMS = range(0xE0, 0xF0)  # in the heads of PES packets
_TIMES = 1 << 33  # decoding times; then they begin again

_Heads = npt.NDArray[np.uint32]
_Rows = npt.NDArray[np.intp]


class MpegTsWalker(Walker):
    """Check the sync bytes of all packets, and the counters of all PIDs but that of null packets."""

    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._heads = np.zeros(_PIDS, np.uint32)  # of each PID's last packet; 0 if there was none
        self._positions = np.zeros(_PIDS, np.int64)  # of that packet, bytes into the file
        self._is_repeat = np.zeros(_PIDS, np.bool_)  # that packet repeats the one before it
        self._has_packets = np.zeros(_PIDS, np.bool_)  # PES packets, not sections
        self._first_heads = np.zeros(_PIDS, np.uint32)  # of each PID's first packet
        self._starts = np.zeros((2, _PIDS), np.int64)  # of each PID's last two packets that begin something
        self._first = b""  # the first packet, if a stream begins with it
        self._repeated_at: list[int] = []  # where that packet comes again, the last few, bytes into the file
        # The last PES packet before a stream begins anew, which nothing else ends, and the one before it:
        # FFmpeg marks one of them as damaged. Bytes into the file, as FFmpeg counts them.
        self.ends_at_joints: set[int] = set()
        self._size = 0  # of a packet with what is around it; 0 until it is known
        self._block = _NOTHING

    def _follow(self, end: int) -> None:
        if not self._size:
            self._size = _packet_size(os.pread(self._descriptor, BLOCK_BYTES, 0))
            self._is_lost = True
            return
        while self._at < end and not self._is_lost and not self._is_over:
            block_end = min(self._at + _BLOCK_PACKETS * self._size, self._file_bytes)
            block = map_block(self._descriptor, self._at, block_end)
            self._block = np.frombuffer(block, np.uint8)
            count = (len(self._block) + self._size - PACKET_BYTES) // self._size
            if not count:
                self._note(self._at, "the file ends inside a packet")
                self._at = self._file_bytes
                return
            heads = np.ndarray((count,), ">u4", block, 0, (self._size,)).astype(np.uint32)
            # Where runs of packets begin that differ in nothing but a counter that goes up by one.
            step = heads[1:] - heads[:-1]
            is_break = (step != 1) & (step != _WRAPS)
            is_other = heads & (_START | _HAS_PAYLOAD) != _HAS_PAYLOAD  # may begin something
            is_break |= is_other[1:] | is_other[:-1]
            first = np.flatnonzero(np.append(True, is_break))
            whole = count
            if not (heads[first] & _SYNC_OR_ERROR == SYNC << 24).all():
                is_packet = heads >> 24 == SYNC
                whole = count if is_packet.all() else int(is_packet.argmin())
                first = first[first < whole]
                marked = np.flatnonzero(heads[:whole] & _ERROR)
                _, runs, counts = np.unique(marked // _MARKED_TOGETHER, return_index=True, return_counts=True)
                for row, marks in zip(marked[runs].tolist(), counts.tolist(), strict=True):
                    place = self._at + row * self._size
                    self._note(place, f"packets marked as damaged by the receiver: {marks}")
            if whole:
                self._check_starts(heads[first], first)
                self._check_counters(heads[:whole], first)
            if whole < count:
                self._heads[:] = 0  # what is lost here is noted once, not once a PID
                self._lose(self._at + whole * self._size, "bytes that are no transport packet")
            else:
                self._at += whole * self._size
            self._block = _NOTHING
            del block  # not mapped for longer

    def _check_starts(self, heads: _Heads, rows: _Rows) -> None:
        """Note packets that should begin a PES packet, of a PID that has such, and do not (2.4.3.6).

        A zero and then another number may be a section: in joined streams one PID has both, by turns.
        """
        is_head = (heads & (_START | _HAS_PAYLOAD | _SCRAMBLED)) == _START | _HAS_PAYLOAD
        at, heads = rows[is_head], heads[is_head]
        pids = heads >> 8 & _NULL_PID
        places = at * self._size + 4
        places += np.where(heads & _HAS_FIELD != 0, self._block[places].astype(np.intp) + 1, 0)
        is_inside = places <= at * self._size + PACKET_BYTES - 3
        at, pids, places = at[is_inside], pids[is_inside], places[is_inside]
        first, second, third = (self._block[places + number] for number in range(3))
        is_start = (first == 0) & (second == 0) & (third == 1)
        self._has_packets[pids[is_start]] = True
        is_section = (first == 0) & (second != 0)
        for place in at[~is_start & ~is_section & self._has_packets[pids] & (pids != _NULL_PID)].tolist():
            self._elements += 1
            self._note(self._at + place * self._size, "a packet's head is damaged")

    def _check_counters(self, all_heads: _Heads, rows: _Rows) -> None:
        """Check the first packet of each run, at `rows`, against the last one of the PID's run before."""
        last_rows = np.append(rows[1:], len(all_heads)) - 1
        pids = (all_heads[rows] >> 8 & _NULL_PID).astype(np.uint16)
        order = np.argsort(pids, kind="stable")  # each PID's runs in a row
        rows, last_rows, pids = rows[order], last_rows[order], pids[order]
        heads, last_heads = all_heads[rows], all_heads[last_rows]
        is_first = np.append(True, pids[1:] != pids[:-1])
        first = np.flatnonzero(is_first)
        last = np.append(first[1:], len(rows)) - 1
        before = np.append(np.uint32(0), last_heads[:-1])
        before[first] = self._heads[pids[first]]
        self._note_first(pids[first], heads[first], all_heads)
        has_payload = heads >> 4 & 1  # a packet without a payload does not count
        odd = np.flatnonzero(((heads - before & 15) != has_payload) & (before != 0))
        odd = odd[pids[odd] != _NULL_PID]  # whose counter is undefined
        positions = self._at + rows * self._size
        is_repeat = np.zeros(len(rows), np.bool_)
        joints = []
        for place in odd.tolist():
            pid, head, head_before = int(pids[place]), int(heads[place]), int(before[place])
            here = int(positions[place])
            earlier = self._at + int(last_rows[place - 1]) * self._size
            was_repeat = is_repeat[place - 1] and rows[place - 1] == last_rows[place - 1]
            if is_first[place]:
                earlier, was_repeat = int(self._positions[pid]), self._is_repeat[pid]
            # A packet may come twice: only its clock may differ then (2.4.3.3).
            may_repeat = (
                not was_repeat and not (head ^ head_before) & 15 and head & head_before & _HAS_PAYLOAD
            )
            if may_repeat and _payload(self._packet(earlier)) == _payload(self._packet(here)):
                is_repeat[place] = True
                continue
            # Does a stream begin again between the PID's last packet and this one?
            nearest = bisect_right(self._repeated_at, here) - 1
            is_joint = nearest >= 0 and self._repeated_at[nearest] > earlier
            if is_joint and not (head ^ int(self._first_heads[pid])) & (_START | 15):
                joints += [here] if here in self._repeated_at else []
                self._check_time(pid, positions[(pids == pid) & (heads & _START != 0)], here)
                continue
            packet = self._packet(here)
            has_indicator = head & _HAS_FIELD and packet[4] and packet[5] & 0x80  # discontinuity_indicator
            if not has_indicator:
                step = f"jumps from {head_before & 15} to {head & 15}"
                step = f"stays at {head & 15}" if not (head ^ head_before) & 15 else step
                self._note(here, f"packets are missing: the continuity counter of PID {pid} {step}")
        for joint in joints:  # a counter may go on by chance
            is_behind = positions >= joint
            is_next = is_behind & np.append(True, is_first[1:] | ~is_behind[:-1]) & (heads & _START != 0)
            is_next[odd] = False
            for place in np.flatnonzero(is_next).tolist():
                starts = positions[(pids == pids[place]) & (heads & _START != 0)]
                self._check_time(int(pids[place]), starts, int(positions[place]))
        self._elements += len(odd)
        self._heads[pids[last]] = last_heads[last]
        self._positions[pids[last]] = self._at + last_rows[last] * self._size
        self._is_repeat[pids[last]] = is_repeat[last] & (rows[last] == last_rows[last])
        # Keep the last two starts of each PID; here they are in a row.
        pids, positions = pids[heads & _START != 0], positions[heads & _START != 0]
        self._starts[0, pids] = self._starts[1, pids]
        is_followed = pids[:-1] == pids[1:]
        self._starts[0, pids[:-1][is_followed]] = positions[:-1][is_followed]
        self._starts[1, pids] = positions

    def _note_first(self, pids: npt.NDArray[np.uint16], heads: _Heads, all_heads: _Heads) -> None:
        """Keep the first head of each PID, and where the file's first packet comes again in this block."""
        if not self._first_heads.any():
            head = int(all_heads[0])
            is_beginning = bool(head & _START) and head >> 8 & _NULL_PID in _TABLES
            self._first = self._packet(self._at) if is_beginning else b""
        is_new = self._first_heads[pids] == 0
        self._first_heads[pids[is_new]] = heads[is_new]
        if self._first:
            rows = np.flatnonzero(all_heads == int.from_bytes(self._first[:4], "big"))
            places = (self._at + rows * self._size).tolist()
            self._repeated_at = self._repeated_at[-1:] + [
                place for place in places if self._packet(place) == self._first
            ]

    def _check_time(self, pid: int, starts: npt.NDArray[np.int64], here: int) -> None:
        """Note it if a stream begins again at `here` and the time leaps ahead. Only video is checked."""
        last_two = [*self._starts[:, pid].tolist(), *starts[starts < here].tolist()][-2:]
        heads = [_payload(self._packet(start)) for start in (*last_two, here)]
        if heads[2][:3] != b"\0\0\1" or heads[2][3] not in _VIDEO_STREAMS:
            return
        times = [time for head in heads if (time := _decoding_time(head)) is not None]
        steps = [(after - before) % _TIMES for before, after in pairwise(times)]
        is_back = len(steps) == len(last_two) and steps[1] >= _TIMES // 2
        if not is_back and (len(steps) < len(last_two) or 2 * steps[1] > 3 * steps[0]):
            self._note(here, f"a stream begins anew, and the time of PID {pid} leaps ahead")
        elif heads[1][4:6] == b"\0\0":  # without a length: FFmpeg marks it, or the one before, as damaged
            stamp_bytes = _STAMP_BYTES if self._size == _M2TS_BYTES else 0
            self.ends_at_joints.update(start - stamp_bytes for start in last_two)

    def _packet(self, position: int) -> bytes:
        offset = position - self._at
        if offset >= 0:
            return self._block[offset : offset + PACKET_BYTES].tobytes()
        return os.pread(self._descriptor, PACKET_BYTES, position)

    def _search(self) -> None:
        length = BLOCK_BYTES + (SYNCS_IN_A_ROW - 1) * self._size
        block = np.frombuffer(os.pread(self._descriptor, length, self._at), np.uint8)
        count = len(block) - (SYNCS_IN_A_ROW - 1) * self._size
        found: int | None = None
        if count > 0:
            is_run = block[:count] == SYNC  # packets follow each other from there
            for number in range(1, SYNCS_IN_A_ROW):
                is_run &= block[number * self._size : number * self._size + count] == SYNC
            place = int(is_run.argmax())
            # M2TS: for half a second a time stamp may begin with the sync byte.
            behind_stamp = place + _STAMP_BYTES
            is_stamp = self._size == _M2TS_BYTES and behind_stamp < count and is_run[behind_stamp]
            if is_run[place]:
                found = behind_stamp if is_stamp else place
        is_start = not self._notes and self._at == 0
        self._is_lost = found is None
        if is_start and (found is None or found >= self._size):  # else a recording begins inside a packet
            self._note(0, "bytes that are no transport packet")
        if found is not None:
            self._at += found
        else:
            self._at = self._file_bytes if len(block) < length else self._at + BLOCK_BYTES


def _packet_size(data: bytes) -> int:
    """Return the size whose multiples are most often a sync byte."""
    is_sync = np.frombuffer(data, np.uint8) == SYNC

    def best_share(size: int) -> float:
        rows = len(is_sync) // size
        shares = is_sync[: rows * size].reshape(rows, size).mean(axis=0) if rows else np.zeros(1)
        return float(shares.max())

    return max(STRIDES, key=best_share)


def _payload(packet: bytes) -> bytes:
    return packet[5 + packet[4] :] if packet[3] & _HAS_FIELD else packet[4:]


def _decoding_time(packet: bytes) -> int | None:
    """Return when a PES packet's picture is decoded, in ticks of 90 kHz (2.4.3.7); None if not declared."""
    if len(packet) < 19 or not packet[7] >> 7:
        return None
    at = 14 if packet[7] >> 6 == 3 else 9
    return (
        (packet[at] >> 1 & 7) << 30
        | packet[at + 1] << 22
        | packet[at + 2] >> 1 << 15
        | packet[at + 3] << 7
        | packet[at + 4] >> 1
    )
