"""Segments: runs of frames cut at keyframes; the unit of decoding, memory, retry and resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Entry:
    """A packet at which decoding can enter: how to find it again, and how to know that it is the one."""

    ordinal: int  # 0-based among the stream's packets, in the container's order
    pts: int | None
    dts: int | None
    position: int | None  # bytes into the file, where the container tells
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The frames `first_frame_id` … `first_frame_id + len(pts) - 1` of a video, in presentation order.

    Decoding feeds `packet_count` packets from `entry` on and keeps the frames whose time stamps are in
    `pts`: a keyframe's leading pictures belong to the segment before it, which reads that far.
    Plain data, so that it can be sent to other processes and machines.
    """

    number: int  # 0-based, in presentation order, without gaps
    first_frame_id: int
    pts: npt.NDArray[np.int64]  # (n,) ticks of VideoFacts.time_base; ascending unless `frames_before` is set
    wanted: npt.NDArray[np.bool_]  # (n,) the frames to be delivered
    entry: Entry
    packet_count: int
    # Further packets at which decoding can enter, in order, thinned to a few: (entry, rank of the first
    # frame that is whole from there). What is not wanted or cannot be decoded is passed over with them.
    later_entries: tuple[tuple[Entry, int], ...] = ()
    # Set where time stamps do not tell frames apart: frames are then counted, not matched. It is the
    # number of frames that come out of the decoder between `entry` and the segment's first. Such
    # segments of one `entry` are cheapest decoded in order, by one caller.
    frames_before: int | None = None
    skipped: tuple[int, ...] = ()  # ordinals of packets that are not to be decoded: they crash decoders

    @property
    def frame_count(self) -> int:
        return len(self.pts)

    @property
    def wanted_count(self) -> int:
        return int(np.count_nonzero(self.wanted))
