"""Segments: runs of frames cut at keyframes; the unit of decoding, memory, retry and resume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from app.video.protocol.packets import Entry


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Frame ids `first` … `last`, both included."""

    first: int
    last: int
    reason: str = ""

    @property
    def frame_count(self) -> int:
        return self.last - self.first + 1


RANGES_KEPT = 1000  # in a report


@dataclass(slots=True)
class RangeList:
    """Ranges of frames in ascending order: the first ranges, and the number of frames in all of them."""

    frames: int = 0
    kept: list[FrameRange] = field(default_factory=list)
    dropped: int = 0  # ranges

    def add(self, ranges: Iterable[FrameRange]) -> None:
        """Add ranges that follow those before; one that continues the last is joined to it."""
        for stretch in ranges:
            self.frames += stretch.frame_count
            last = self.kept[-1] if self.kept else None
            if last and last.last + 1 == stretch.first and last.reason == stretch.reason:
                self.kept[-1] = replace(last, last=stretch.last)
            elif len(self.kept) < RANGES_KEPT:
                self.kept.append(stretch)
            else:
                self.dropped += 1

    def add_ids(self, frame_ids: npt.NDArray[np.int64], reason: str) -> None:
        """Add the ranges of ids, (n,) ascending, all greater than those before."""
        if not len(frame_ids):
            return
        starts = np.flatnonzero(np.diff(frame_ids, prepend=frame_ids[0] - 2) > 1)
        firsts, lasts = frame_ids[starts], frame_ids[np.append(starts[1:], len(frame_ids)) - 1]
        taken = 1 + RANGES_KEPT - len(self.kept)  # the first may continue the last one kept
        pairs = zip(firsts[:taken].tolist(), lasts[:taken].tolist(), strict=True)
        self.add(FrameRange(first, last, reason) for first, last in pairs)
        self.frames += int(np.sum(lasts[taken:] - firsts[taken:] + 1))
        self.dropped += len(firsts[taken:])


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Frames of a video, in presentation order, from id `first_frame_id` on. Lost frames are in no segment.

    Decoding feeds `packet_count` packets from `entry` on and keeps the frames whose time stamps are in `pts`:
    a keyframe's leading pictures belong to the segment before it, which reads that far. Segments are plain
    data, to be sent to other processes and machines.
    """

    number: int  # 0-based, in presentation order, without gaps
    first_frame_id: int
    pts: npt.NDArray[np.int64]  # (n,) ticks of VideoFacts.time_base; ascending unless `frames_before` is set
    wanted: npt.NDArray[np.bool_]  # (n,) the frames to deliver
    entry: Entry
    packet_count: int
    # Some of the later packets at which decoding can enter, in order: (entry, rank of the first frame that
    # is whole from there). They are used to skip frames that are not wanted or cannot be decoded.
    later_entries: tuple[tuple[Entry, int], ...] = ()
    # Set if time stamps do not tell frames apart: frames are then counted. It is the number of frames that
    # the decoder returns between `entry` and the segment's first. Such segments of one `entry` are cheapest
    # decoded in order, by one caller.
    frames_before: int | None = None
    skipped: tuple[int, ...] = ()  # ordinals of packets to leave out: they crash decoders
    lost_before: tuple[tuple[int, int], ...] = ()  # (rank, how many frames were lost just before it)
    # The order in which frames are decoded, as packets from `entry` on, (n,) int32, and which of those
    # packets are keyframes that need no earlier packet. None if frames are counted.
    packet_offsets: npt.NDArray[np.int32] | None = None
    clean_offsets: npt.NDArray[np.int32] | None = None

    @property
    def frame_ids(self) -> npt.NDArray[np.int64]:
        """(n,) ascending. Computed at each call, so that a long video's segments stay small."""
        ids = np.arange(self.first_frame_id, self.first_frame_id + len(self.pts), dtype=np.int64)
        for rank, count in self.lost_before:
            ids[rank:] += count
        return ids

    @property
    def frame_count(self) -> int:
        return len(self.pts)

    @property
    def wanted_count(self) -> int:
        return int(np.count_nonzero(self.wanted))
