"""Packets in the index: where decoding can enter, what their time stamps show, and where data was lost.

Evidence that a container has lost data comes from the demuxer, and from the walkers, which check the
container's own chain. Places are counted in packets, to compare evidence with frames: evidence at place n was
seen between packets n - 1 and n. If frames have to be counted, places are counted in frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from fractions import Fraction
from typing import NamedTuple

MAX_REORDER = 16  # frames that a decoder may hold back: ITU-T H.264 A.3.1, H.265 A.4.2


@dataclass(frozen=True, slots=True)
class Entry:
    """A packet at which decoding can enter, with all that is needed to find it again and to recognise it."""

    ordinal: int  # 0-based among the stream's packets, in the container's order
    pts: int | None
    dts: int | None
    position: int | None  # bytes into the file, if known
    size_bytes: int


class PacketFlag(IntFlag):
    KEY = 1
    CLEAN = 2  # a keyframe at which decoding can enter: nothing shown after it needs earlier packets
    DISCARD = 4  # decoded but not shown (edit lists), or never shown (hidden reference frames)


class PacketRecord(NamedTuple):
    """What the index keeps of a packet; absent values are None."""

    ordinal: int
    pts: int | None
    dts: int | None
    position: int | None
    size_bytes: int
    flags: int

    @property
    def entry(self) -> Entry:
        return Entry(self.ordinal, self.pts, self.dts, self.position, self.size_bytes)


class Displacement:
    """Recognise damaged time stamps: those farther from the decoding time than reordering explains.

    A frame with such a stamp may fall outside of what an edit list shows, as if it were hidden. If a video
    was cut, the first decoding times may be a tick apart, so steps below `ticks_a_frame`, the container's
    claim, are treated as that.
    """

    def __init__(self, ticks_a_frame: Fraction | None = None) -> None:
        self._least_step = ticks_a_frame or 0
        self._last_dts: int | None = None

    def is_seen(self, pts: int | None, dts: int | None) -> bool:
        """Whether the next packet's stamps, in decoding order, are damaged."""
        before, self._last_dts = self._last_dts, dts
        if pts is None or dts is None or before is None:
            return False
        return abs(pts - dts) > 2 * MAX_REORDER * max(abs(dts - before), self._least_step)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One damaged place: `count` observations, with the position and reason of the first."""

    place: int
    position: int | None  # bytes into the file
    count: int
    reason: str
