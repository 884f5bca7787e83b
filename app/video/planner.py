"""Segment planning: packets in, segments out. Pure, and streaming: nothing is kept but the open segment.

A *run* is a keyframe and the packets up to the next one. Frames are identified by their time stamps, so
a run may begin a segment if its keyframe can be decoded without what came before, and if every earlier
packet is shown before it. Pictures that follow the keyframe in the file but are shown before it (the
leading pictures of an open GOP) belong to the segment before, which reads on to get them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from app.video.sampling import PtsArray, Sampling
from app.video.segments import Entry, Segment

_LONGEST_SEGMENT_FRAMES = 5000  # a part, its progress and its retry must stay small


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


class UnusableTimestamps(Exception):
    """From `entry` on, the packets do not tell how to cut; the segments given out before stand.

    Frames must then be counted as they come out of a decoder.
    """

    def __init__(self, entry: Entry, reason: str) -> None:
        super().__init__(entry, reason)
        self.entry = entry
        self.reason = reason


@dataclass(slots=True)
class _Run:
    key: PacketRecord
    pts: list[int] = field(default_factory=list)  # of the frames shown, in the container's order
    packet_count: int = 0
    last_leading: int = 0  # packets from the key to the last one shown before it, itself included
    missing_pts: bool = False

    def add(self, packet: PacketRecord) -> None:
        self.packet_count += 1
        if packet.flags & PacketFlag.DISCARD:
            if self.last_leading and self.last_leading == self.packet_count - 1:
                self.last_leading = self.packet_count  # the second field of a frame shown before the key
            return
        if packet.pts is None:
            self.missing_pts = True
            return
        self.pts.append(packet.pts)
        if self.key.pts is not None and packet.pts < self.key.pts:
            self.last_leading = self.packet_count


class SegmentNumbering:
    """Gives consecutive runs of frames their numbers, ids and sampling."""

    def __init__(self, sampling: Sampling, time_base: Fraction) -> None:
        self._sampling = sampling
        self._time_base = time_base
        self._previous_pts: int | None = None
        self._start_pts: int | None = None
        self._smallest_step: int | None = None
        self._largest_step: int | None = None
        self.segments = 0
        self.frames = 0
        self.frames_wanted = 0

    def number(
        self,
        pts: PtsArray,
        entry: Entry,
        packet_count: int,
        *,
        later_entries: tuple[tuple[Entry, int], ...] = (),
        frames_before: int | None = None,
        skipped: tuple[int, ...] = (),
    ) -> Segment:
        if self._start_pts is None:
            self._start_pts = int(pts[0])
        self._note_steps(pts)
        wanted = self._sampling.wanted(
            self.frames,
            pts,
            previous_pts=self._previous_pts,
            start_pts=self._start_pts,
            time_base=self._time_base,
        )
        segment = Segment(
            self.segments,
            self.frames,
            pts,
            wanted,
            entry,
            packet_count,
            later_entries,
            frames_before,
            skipped,
        )
        self._previous_pts = int(pts[-1])
        self.segments += 1
        self.frames += len(pts)
        self.frames_wanted += segment.wanted_count
        return segment

    @property
    def duration_seconds(self) -> float | None:
        """From the first frame's time stamp to the end of the last, taken to last as the smallest step."""
        if self._start_pts is None or self._previous_pts is None:
            return None
        ticks = self._previous_pts - self._start_pts + max(self._smallest_step or 0, 0)
        return float(ticks * self._time_base) if ticks >= 0 else None

    @property
    def variable_frame_rate(self) -> bool:
        """Whether steps between frames differ by more than the rounding of the container's clock."""
        if self._smallest_step is None or self._largest_step is None:
            return False
        return self._largest_step - self._smallest_step > max(2, self._smallest_step // 50)

    def _note_steps(self, pts: PtsArray) -> None:
        before = [] if self._previous_pts is None else [self._previous_pts]
        steps = np.diff(np.concatenate((np.array(before, dtype=np.int64), pts)))
        if len(steps) == 0:
            return
        low, high = int(steps.min()), int(steps.max())
        self._smallest_step = low if self._smallest_step is None else min(low, self._smallest_step)
        self._largest_step = high if self._largest_step is None else max(high, self._largest_step)


class SegmentPlanner:
    """Cuts a stream of packets into segments of at least `segment_frames` frames (the last may be shorter).

    The plan depends on the packets and `segment_frames` alone. `first_shown_pts` is the time stamp of the
    first frame that a decoder put out: pictures before it that need frames from before the file are no
    frames of this video. Raises UnusableTimestamps from `feed` or `finish`.
    """

    def __init__(
        self, numbering: SegmentNumbering, *, segment_frames: int, first_shown_pts: int | None
    ) -> None:
        self._numbering = numbering
        self._segment_frames = segment_frames
        self._first_shown_pts = first_shown_pts
        self._runs: list[_Run] = []  # of the open segment; the last one still grows
        self._given_out: PtsArray = np.array([], dtype=np.int64)
        self._boundary: int | None = None  # every frame of the open segment is shown at or after it
        self._frames = 0  # in the open segment, its growing run aside
        self._most_frames = max(_LONGEST_SEGMENT_FRAMES, 16 * segment_frames)
        self._last_pts: int | None = None  # greatest of the open segment, its growing run aside

    def feed(self, packets: Iterable[PacketRecord]) -> Iterator[Segment]:
        """Take the next packets and yield the segments that they complete, in order."""
        for packet in packets:
            starts_run = bool(packet.flags & PacketFlag.KEY) or not self._runs
            if starts_run and self._runs:
                yield from self._close_run()
            if starts_run:
                self._runs.append(_Run(packet))
            self._runs[-1].add(packet)
            if self._frames + self._runs[-1].packet_count > self._most_frames:
                raise UnusableTimestamps(self._runs[0].key.entry, "no keyframe for a long time")

    def finish(self) -> list[Segment]:
        """Return the last segments."""
        if not self._runs:
            return []
        segments = self._close_run()
        pts = self._own_pts()
        if len(pts):
            first = self._runs[0].key.entry
            later = _later_entries(self._runs, pts)
            segments.append(self._numbering.number(pts, first, self._packets(), later_entries=later))
        self._runs = []
        return segments

    @property
    def last_pts(self) -> PtsArray:
        """The time stamps of the segment that was given out last; empty if none was."""
        return self._given_out

    def _close_run(self) -> list[Segment]:
        run = self._runs[-1]
        self._check(run)
        closed: list[Segment] = []
        if self._may_cut_at(run):
            closed.append(self._cut_before(run))
        self._extend_by(run)
        return closed

    def _check(self, run: _Run) -> None:
        if run.missing_pts:
            raise UnusableTimestamps(self._runs[0].key.entry, "frames without time stamps")
        if len(set(run.pts)) != len(run.pts):
            raise UnusableTimestamps(self._runs[0].key.entry, "frames that share a time stamp")
        if run is self._runs[0]:
            return
        if self._boundary is not None and run.pts and min(run.pts) < self._boundary:
            raise UnusableTimestamps(self._runs[0].key.entry, "time stamps that run backward")

    def _may_cut_at(self, run: _Run) -> bool:
        key = run.key
        if run is self._runs[0] or not key.flags & PacketFlag.CLEAN or key.pts is None:
            return False
        leading = sum(value < key.pts for value in run.pts)
        return (
            self._frames + leading >= self._segment_frames
            and (self._last_pts is None or self._last_pts < key.pts)
            and len(run.pts) > leading
        )

    def _cut_before(self, run: _Run) -> Segment:
        key_pts = run.key.pts
        assert key_pts is not None  # noqa: S101 - _may_cut_at has seen to it
        earlier = self._runs[:-1]
        leading = [value for value in run.pts if value < key_pts]
        pts = self._own_pts(earlier, leading)
        packet_count = sum(other.packet_count for other in earlier) + run.last_leading
        segment = self._numbering.number(
            pts, earlier[0].key.entry, packet_count, later_entries=_later_entries(earlier, pts)
        )
        self._runs = [run]
        self._given_out = pts
        self._boundary = key_pts
        self._frames = 0
        self._last_pts = None
        return segment

    def _extend_by(self, run: _Run) -> None:
        shown = [value for value in run.pts if self._is_own(value)]
        self._frames += len(shown)
        if shown:
            last = max(shown)
            self._last_pts = last if self._last_pts is None else max(last, self._last_pts)

    def _is_own(self, pts: int) -> bool:
        if self._boundary is not None:
            return pts >= self._boundary
        first = self._runs[0].key
        if self._first_shown_pts is None:
            return True
        if not first.flags & PacketFlag.KEY or first.pts is None:
            return pts >= self._first_shown_pts
        return pts >= min(self._first_shown_pts, first.pts)

    def _own_pts(self, runs: list[_Run] | None = None, leading: Sequence[int] = ()) -> PtsArray:
        values = [value for run in (self._runs if runs is None else runs) for value in run.pts]
        own = np.array(
            sorted([value for value in values if self._is_own(value)] + list(leading)), dtype=np.int64
        )
        if len(own) > 1 and bool((np.diff(own) == 0).any()):
            raise UnusableTimestamps(self._runs[0].key.entry, "frames that share a time stamp")
        return own

    def _packets(self) -> int:
        return sum(run.packet_count for run in self._runs)


_MAX_LATER_ENTRIES = 16


def _later_entries(runs: Sequence[_Run], pts: PtsArray) -> tuple[tuple[Entry, int], ...]:
    """The clean keyframes after the first: where decoding can enter, and from which frame on it is whole."""
    latest: int | None = None
    entries: list[tuple[Entry, int]] = []
    for number, run in enumerate(runs):
        key = run.key
        is_clean = bool(key.flags & PacketFlag.CLEAN)
        if number and is_clean and key.pts is not None and (latest is None or latest < key.pts):
            entries.append((key.entry, int(np.searchsorted(pts, key.pts))))
        latest = max([*run.pts, *([] if latest is None else [latest])], default=None)
    step = -(-len(entries) // _MAX_LATER_ENTRIES) or 1
    return tuple(entry for entry in entries[::step] if entry[1] < len(pts))


class SerialNumbering:
    """Cuts frames that are counted as they come out of a decoder into segments of `segment_frames`."""

    def __init__(
        self,
        numbering: SegmentNumbering,
        entry: Entry,
        *,
        segment_frames: int,
        given_out: PtsArray,
        ticks_a_frame: int,
    ) -> None:
        self._numbering = numbering
        self._entry = entry
        self._segment_frames = segment_frames
        # Leading pictures of the entry, if they decode: frames of the segment before, which come out first.
        self._leading = set(given_out.tolist())
        self._ticks_a_frame = ticks_a_frame
        self._frames_before = 0
        self._last_pts: int | None = None
        self._pts: list[int] = []

    def feed(self, stamps: Iterable[int | None], skipped: tuple[int, ...]) -> list[Segment]:
        """Take the time stamps of the next frames and return the segments that they completed."""
        segments = []
        for stamp in stamps:
            if self._is_leading(stamp):
                self._frames_before += 1
                continue
            self._pts.append(self._pts_of(stamp))
            if len(self._pts) == self._segment_frames:
                segments += self.finish(skipped)
        return segments

    def finish(self, skipped: tuple[int, ...]) -> list[Segment]:
        """Return what is left as a segment."""
        if not self._pts:
            return []
        pts = np.array(self._pts, dtype=np.int64)
        before = self._frames_before
        segment = self._numbering.number(
            pts, self._entry, before + len(pts), frames_before=before, skipped=skipped
        )
        self._frames_before += len(pts)
        self._pts = []
        return [segment]

    def _is_leading(self, stamp: int | None) -> bool:
        if stamp in self._leading:
            return True
        self._leading = set()
        return False

    def _pts_of(self, stamp: int | None) -> int:
        """Frames without a time stamp follow at the container's rate."""
        if stamp is None:
            stamp = 0 if self._last_pts is None else self._last_pts + self._ticks_a_frame
        self._last_pts = stamp
        return stamp
