"""Packets as the index tells of them: where decoding can enter, and what their time stamps say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from fractions import Fraction
from typing import NamedTuple

from app.video.protocol.evidence import MAX_REORDER


@dataclass(frozen=True, slots=True)
class Entry:
    """A packet at which decoding can enter: how to find it again, and how to know that it is the one."""

    ordinal: int  # 0-based among the stream's packets, in the container's order
    pts: int | None
    dts: int | None
    position: int | None  # bytes into the file, where the container tells
    size_bytes: int


class PacketFlag(IntFlag):
    KEY = 1
    CLEAN = 2  # a keyframe at which decoding can enter: nothing shown after it needs what came before
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
    """Tells time stamps that are farther from the decoding time than reordering explains: damaged ones.

    A frame of such a time may come to lie outside of what an edit list shows, as if it were to be hidden.
    Where a video was cut, the first decoding times may be a tick apart: no step counts for less than
    `ticks_a_frame`, as the container claims.
    """

    def __init__(self, ticks_a_frame: Fraction | None = None) -> None:
        self._least_step = ticks_a_frame or 0
        self._last_dts: int | None = None

    def is_seen(self, pts: int | None, dts: int | None) -> bool:
        """Take the next packet's stamps, in decoding order."""
        before, self._last_dts = self._last_dts, dts
        if pts is None or dts is None or before is None:
            return False
        return abs(pts - dts) > 2 * MAX_REORDER * max(abs(dts - before), self._least_step)
