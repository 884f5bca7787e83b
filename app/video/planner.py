"""Segment planning: packets in, segments out. Pure and streaming: it keeps only the open segment.

A *run* is a keyframe and the packets up to the next one. Frames are identified by their time stamps, so a run
may begin a segment if its keyframe decodes without earlier packets, and if every earlier packet is shown
before it. Pictures that follow the keyframe in the file but are shown before it (the leading pictures of an
open GOP) belong to the segment before, which reads on to get them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappush, heapreplace

import numpy as np

from app.video.clock import FrameClock, likely_stamp
from app.video.damage import EvidenceList
from app.video.protocol.packets import MAX_REORDER, Displacement, Entry, PacketFlag, PacketRecord
from app.video.sampling import BoolArray, PtsArray, Sampling
from app.video.segments import RangeList, Segment

_LONGEST_WITHOUT_JOINT = 5000  # frames: a part, its progress and its retry must stay small
_PACKETS_AHEAD = 2 * MAX_REORDER  # evidence about a frame may come with packets after it
_LOST_FRAMES_A_BLOCK = 65536
_LOST_REASON = "the data is missing from the file"
_MAX_LATER_ENTRIES = 16
_LEAST_PTS = -(2**63)  # no frame has it


class UnusableTimestamps(Exception):
    """The packets from `entry` on do not show where to cut; segments before it are valid.

    Frames must then be counted as a decoder returns them.
    """

    def __init__(self, entry: Entry, leading: tuple[int, ...], reason: str) -> None:
        super().__init__(entry, leading, reason)
        self.entry = entry
        self.leading = leading  # pts of the entry's leading pictures, which are in a segment before
        self.reason = reason


@dataclass(slots=True)
class _Run:
    key: PacketRecord
    pts: list[int] = field(default_factory=list)  # of the frames shown, in the container's order
    places: list[int] = field(default_factory=list)  # of the packets that hold them
    packet_count: int = 0
    last_leading: int = 0  # packets from the key to the last one shown before it, both included
    missing_pts: bool = False

    def add(self, packet: PacketRecord, *, is_shown: bool) -> None:
        self.packet_count += 1
        if not is_shown:
            if self.last_leading and self.last_leading == self.packet_count - 1:
                self.last_leading = self.packet_count  # the second field of a frame shown before the key
            return
        if packet.pts is None:
            self.missing_pts = True
            return
        self.pts.append(packet.pts)
        self.places.append(packet.ordinal)
        if self.key.pts is not None and packet.pts < self.key.pts:
            self.last_leading = self.packet_count

    def part(self, *, is_leading: bool) -> _Run:
        """Return the run up to its last leading frame, with only such frames; or all of it, without them.

        Leading frames are shown before the keyframe.
        """
        kept = [n for n, pts in enumerate(self.pts) if (pts < (self.key.pts or 0)) == is_leading]
        packet_count = self.last_leading if is_leading else self.packet_count
        return _Run(self.key, [self.pts[n] for n in kept], [self.places[n] for n in kept], packet_count)


class SegmentNumbering:
    """Give consecutive runs of frames their numbers, ids and sampling.

    If frames are missing from a regular clock and there is evidence of lost data, the missing frames get ids
    too: later frames keep the ids that they have in the intact video.
    """

    def __init__(
        self,
        sampling: Sampling,
        time_base: Fraction,
        *,
        evidence: EvidenceList | None = None,
        nominal_step: Fraction | None = None,
        max_frames: int = 2**62,
    ) -> None:
        self._sampling = sampling
        self._time_base = time_base
        self._max_frames = max_frames
        self._previous: tuple[int, int] | None = None  # (pts, place) of the last frame, even a lost one
        self._start_pts: int | None = None
        self.clock = FrameClock(nominal_step)
        self.nominal_step = nominal_step  # ticks a frame, as the container claims
        self.evidence = EvidenceList() if evidence is None else evidence
        self.start_is_made_up = False  # the first frame has no time stamp of its own
        self.segments = 0
        self.frames = 0
        self.frames_wanted = 0  # lost ones included
        self.lost = RangeList()  # wanted frames that are in no segment
        # The first frame whose id may be too low: frames were lost before it, and no clock says how many.
        self.unsure_from: int | None = None

    def number(
        self,
        pts: PtsArray,
        places: PtsArray,
        entry: Entry,
        packet_count: int,
        *,
        later_entries: tuple[tuple[Entry, int], ...] = (),
        frames_before: int | None = None,
        skipped: tuple[int, ...] = (),
        clean_places: Sequence[int] = (),
    ) -> Segment:
        """Return the segment of the next frames: `pts` and `places` (n,), in presentation order."""
        if self._start_pts is None:
            self._start_pts = int(pts[0])
        firsts: list[int] = []
        wanted: list[BoolArray] = []
        lost_before: list[tuple[int, int]] = []
        for first, last in self._stretches(pts, places):
            firsts.append(self.frames)
            if first:
                lost_before.append((first, self.frames - firsts[0] - first - sum(n for _, n in lost_before)))
            wanted.append(self._sample(pts[first:last], int(places[last - 1])))
        is_counted = frames_before is not None
        segment = Segment(
            self.segments,
            firsts[0],
            pts,
            np.concatenate(wanted),
            entry,
            packet_count,
            later_entries,
            frames_before,
            skipped,
            tuple(lost_before),
            None if is_counted else (places - entry.ordinal).astype(np.int32),
            None if is_counted else (np.array(clean_places) - entry.ordinal).astype(np.int32),
        )
        self.evidence.add_frames(segment.frame_ids, places, pts)
        # Packets after the next segment's keyframe may hold frames from before it: a later call knows all.
        self.evidence.locate(int(places.max()) + 1 - _PACKETS_AHEAD, self._time_base)
        self.segments += 1
        return segment

    def finish(self) -> None:
        """Locate the remaining evidence: no frame follows."""
        self.evidence.locate(None, self._time_base)

    def _stretches(self, pts: PtsArray, places: PtsArray) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of the stretches of frames between which none is missing.

        When a stretch is yielded, the missing frames before it have their ids already.
        """
        first = 0
        for rank in self._odd_steps(pts):
            before = (int(pts[rank - 1]), int(places[rank - 1])) if rank else self._previous
            assert before is not None  # noqa: S101 - a step leads from a frame to a frame
            gap = int(pts[rank]) - before[0]
            is_damaged = self.evidence.is_near(*sorted((before[1], int(places[rank]))))
            missing = self.clock.missing_in(gap) if is_damaged else 0
            if missing is None or self.frames + missing > self._max_frames:
                missing = 0
                self.unsure_from = self.unsure_from or self.frames + rank - first
            if not missing:
                self.clock.add_odd(gap, is_damaged=is_damaged)
                continue
            if rank > first:
                yield first, rank
            # The lost frames are spread evenly over the gap, a block at a time.
            step, rest = divmod(gap, missing + 1)
            for done in range(0, missing, _LOST_FRAMES_A_BLOCK):
                numbers = np.arange(done + 1, min(done + _LOST_FRAMES_A_BLOCK, missing) + 1, dtype=np.int64)
                shares = (2 * numbers * rest + missing + 1) // (2 * (missing + 1))
                first_id = self.frames
                wanted = self._sample(before[0] + numbers * step + shares, before[1])
                self.lost.add_ids(first_id + np.flatnonzero(wanted), _LOST_REASON)
            first = rank
        yield first, len(pts)

    def _odd_steps(self, pts: PtsArray) -> Iterator[int]:
        """Yield the frames before which the step is odd, once the clock has taken the regular steps."""
        steps = np.diff(pts) if self._previous is None else np.diff(pts, prepend=self._previous[0])
        at = 0
        while True:
            regular = self.clock.regular_prefix(steps[at:])
            self.clock.add_regular(steps[at : at + regular])
            at += regular
            if at == len(steps):
                return
            yield at + len(pts) - len(steps)
            at += 1

    def _sample(self, pts: PtsArray, place: int) -> BoolArray:
        assert self._start_pts is not None  # noqa: S101 - set by `number`
        wanted = self._sampling.wanted(
            self.frames,
            pts,
            previous_pts=None if self._previous is None else self._previous[0],
            start_pts=self._start_pts,
            time_base=self._time_base,
        )
        self._previous = (int(pts[-1]), place)
        self.frames += len(pts)
        self.frames_wanted += int(np.count_nonzero(wanted))
        return wanted

    @property
    def start_pts(self) -> int | None:
        """The first frame's time stamp, if there is one."""
        return None if self.start_is_made_up else self._start_pts

    @property
    def duration_seconds(self) -> float | None:
        """From the first frame's time stamp to the end of the last, which is as long as the smallest step."""
        if self._start_pts is None or self._previous is None:
            return None
        ticks = self._previous[0] - self._start_pts + max(self.clock.smallest or 0, 0)
        return float(ticks * self._time_base) if ticks >= 0 else None


class _PresentationOrder:
    """Check that a decoder that holds back MAX_REORDER frames can show frames in the order of their pts."""

    def __init__(self) -> None:
        self._greatest: list[int] = []  # heap of the greatest pts so far, one more than may be held back
        self._latest = _LEAST_PTS
        self._earlier_since = 0  # frames since the latest one, all of them shown before it

    def allows(self, pts: int) -> bool:
        """Add the next frame in decoding order. False if it or an earlier one is shown out of order."""
        if pts > self._latest:
            self._latest, self._earlier_since = pts, 0
        else:
            self._earlier_since += 1
        if len(self._greatest) <= MAX_REORDER:
            heappush(self._greatest, pts)
        elif pts < self._greatest[0]:
            return False
        else:
            heapreplace(self._greatest, pts)
        return self._earlier_since <= MAX_REORDER


class SegmentPlanner:
    """Cut a stream of packets into segments of at least `segment_frames` frames (the last may be shorter).

    A run that may begin a segment is a *joint*: frames before it are shown before it. Between joints, frames
    are checked and identified independently of where segments are cut, so the ids, and the place from which
    frames have to be counted, depend only on the packets.

    `first_shown_pts` is the time stamp of the first frame that a decoder returned: earlier pictures need
    frames from before the file, and are not frames of this video. `feed` and `finish` raise
    UnusableTimestamps.
    """

    def __init__(
        self, numbering: SegmentNumbering, *, segment_frames: int, first_shown_pts: int | None
    ) -> None:
        self._numbering = numbering
        self._segment_frames = segment_frames
        self._first_shown_pts = first_shown_pts
        self._ahead: deque[PacketRecord] = deque()  # not planned yet: evidence about them may still come
        self._runs: list[_Run] = []  # of the open segment; the last one still grows
        self._joint = 0  # index of the run at the latest joint
        self._floor: int | None = None  # pts of the latest joint; frames of later runs are shown after it
        self._frames = 0  # in the open segment, without its growing run
        self._frames_from_joint = 0
        self._greatest = _LEAST_PTS  # of all closed runs
        self._order = _PresentationOrder()
        self._displacement = Displacement(numbering.nominal_step)
        self.hidden_by_damage = 0  # frames that are not shown because their time stamps are displaced
        self._joint_leading: tuple[int, ...] = ()  # pts of its leading pictures
        self._first_clean_pts: int | None = None
        self.leading_frames = 0  # shown before the first clean keyframe: they may need data the file lacks

    def feed(self, packets: Iterable[PacketRecord]) -> Iterator[Segment]:
        """Add the next packets and yield the segments that they complete, in order."""
        for packet in packets:
            self._ahead.append(packet)
            if len(self._ahead) > _PACKETS_AHEAD:
                yield from self._plan(self._ahead.popleft())

    def finish(self) -> Iterator[Segment]:
        """Yield the last segments."""
        while self._ahead:
            yield from self._plan(self._ahead.popleft())
        if not self._runs:
            return
        yield from self._close_run()
        if _has_equal(self._runs[self._joint :], self._floor):
            yield from self._give_up("frames that share a time stamp")
        yield from self._segment_of(self._runs, [])
        self._runs = []

    def _plan(self, packet: PacketRecord) -> Iterator[Segment]:
        if not packet.ordinal:
            self._numbering.clock.confirm_claim([packet.pts, *(later.pts for later in self._ahead)])
        starts_run = bool(packet.flags & PacketFlag.KEY) or not self._runs
        if starts_run and self._runs:
            yield from self._close_run()
        if starts_run:
            self._runs.append(_Run(packet))
        if self._displacement.is_seen(packet.pts, packet.dts) and packet.flags & PacketFlag.DISCARD:
            self.hidden_by_damage += 1
        run = self._runs[-1]
        run.add(packet, is_shown=self._is_shown(packet))
        if run.places and run.places[-1] == packet.ordinal and not self._order.allows(run.pts[-1]):
            yield from self._give_up("time stamps that run backward")
        if self._frames_from_joint + run.packet_count > _LONGEST_WITHOUT_JOINT:
            yield from self._give_up("no keyframe for a long time")

    def _is_shown(self, packet: PacketRecord) -> bool:
        if packet.flags & PacketFlag.DISCARD:
            return False
        if packet.flags & PacketFlag.CLEAN or packet.pts is None:
            return True
        if self._first_shown_pts is None or self._floor is not None:
            return True
        first, earliest = self._runs[0].key, self._first_shown_pts
        if first.flags & PacketFlag.KEY and first.pts is not None:
            earliest = min(earliest, first.pts)
        return packet.pts >= earliest

    def _close_run(self) -> Iterator[Segment]:
        run, key = self._runs[-1], self._runs[-1].key
        if run.missing_pts:
            yield from self._give_up("frames without time stamps")
        if self._floor is not None and run.pts and min(run.pts) < self._floor:
            yield from self._give_up("time stamps that run backward")
        is_clean = bool(key.flags & PacketFlag.CLEAN)
        if is_clean and self._first_clean_pts is None:
            self._first_clean_pts = key.pts
        is_joint = (  # decoding can enter at the keyframe, and everything before it is shown before it
            is_clean
            and run is not self._runs[0]
            and key.pts is not None
            and self._greatest < key.pts
            and any(pts >= key.pts for pts in run.pts)
        )
        self._greatest = max([self._greatest, *run.pts])
        if is_joint:
            leading = run.part(is_leading=True)
            if _has_equal([*self._runs[self._joint : -1], leading], self._floor):
                yield from self._give_up("frames that share a time stamp")
            self._joint = len(self._runs) - 1
            self._joint_leading = tuple(leading.pts)
            if self._frames + len(leading.pts) >= self._segment_frames:
                yield from self._cut_at_joint()
            self._floor = key.pts
            self._frames_from_joint = 0
        shown = len(self._runs[-1].pts)  # without what a cut has given to the segment before
        self._frames += shown
        self._frames_from_joint += shown

    def _cut_at_joint(self) -> Iterator[Segment]:
        earlier, later = self._runs[: self._joint], self._runs[self._joint :]
        yield from self._segment_of(earlier, [later[0].part(is_leading=True)])
        later[0] = later[0].part(is_leading=False)
        self._runs = later
        self._joint = 0
        self._frames = sum(len(run.pts) for run in later[:-1])

    def _segment_of(self, runs: list[_Run], leading: list[_Run]) -> Iterator[Segment]:
        """Yield the segment of `runs` and the leading pictures of the next run, if it has frames."""
        pts = np.array([pts for run in [*runs, *leading] for pts in run.pts], dtype=np.int64)
        places = np.array([place for run in [*runs, *leading] for place in run.places], dtype=np.int64)
        if not len(pts):
            return
        order = np.argsort(pts, kind="stable")
        pts, places = pts[order], places[order]
        first_clean = self._first_clean_pts
        self.leading_frames += len(pts) if first_clean is None else int(np.searchsorted(pts, first_clean))
        yield self._numbering.number(
            pts,
            places,
            runs[0].key.entry,
            sum(run.packet_count for run in [*runs, *leading]),
            later_entries=_later_entries(runs, pts),
            clean_places=[run.key.ordinal for run in runs if run.key.flags & PacketFlag.CLEAN],
        )

    def _give_up(self, reason: str) -> Iterator[Segment]:
        """Yield the segment before the latest joint, and raise UnusableTimestamps for what follows."""
        entry = self._runs[self._joint].key.entry
        if self._joint:
            yield from self._cut_at_joint()
        raise UnusableTimestamps(entry, self._joint_leading, reason)


def _has_equal(runs: Iterable[_Run], floor: int | None) -> bool:
    """Whether any frames of `runs`, from `floor` on, share a time stamp."""
    pts = [pts for run in runs for pts in run.pts if floor is None or pts >= floor]
    return len(set(pts)) != len(pts)


def _later_entries(runs: Sequence[_Run], pts: PtsArray) -> tuple[tuple[Entry, int], ...]:
    """Return the clean keyframes after the first, each with the first frame that is whole from there on."""
    latest = _LEAST_PTS
    entries: list[tuple[Entry, int]] = []
    for number, run in enumerate(runs):
        key = run.key
        if number and key.flags & PacketFlag.CLEAN and key.pts is not None and latest < key.pts:
            entries.append((key.entry, int(np.searchsorted(pts, key.pts))))
        latest = max([latest, *run.pts])
    step = -(-len(entries) // _MAX_LATER_ENTRIES) or 1
    return tuple(entry for entry in entries[::step] if entry[1] < len(pts))


class SerialNumbering:
    """Cut frames that are counted as a decoder returns them into segments of `segment_frames`."""

    def __init__(
        self,
        numbering: SegmentNumbering,
        entry: Entry,
        *,
        segment_frames: int,
        leading: tuple[int, ...],
        ticks_a_frame: int,
    ) -> None:
        self._numbering = numbering
        self._entry = entry
        self._segment_frames = segment_frames
        self._leading = set(leading)  # frames of the segment before: if they decode, they come first
        self._ticks_a_frame = ticks_a_frame
        self._frames_before = 0
        self._last_pts: int | None = None
        self._ahead: deque[int | None] = deque()  # stamps: later ones show which are right
        self._pts: list[int] = []
        self.skipped: tuple[int, ...] = ()  # ordinals of the packets that were left out so far

    @property
    def next_place(self) -> int:
        """The place of the frame that comes next: its number among all frames from the entry on."""
        return self._place + len(self._ahead)

    @property
    def _place(self) -> int:
        """The place of the first frame in `_ahead`."""
        return self._entry.ordinal + self._frames_before + len(self._pts)

    def feed(self, stamps: Iterable[int | None]) -> Iterator[Segment]:
        """Add the time stamps of the next frames and yield the segments that they complete."""
        for stamp in stamps:
            if stamp in self._leading:
                self._frames_before += 1
                continue
            self._leading = set()
            self._ahead.append(stamp)
            if len(self._ahead) > _PACKETS_AHEAD:
                yield from self._take()

    def finish(self) -> Iterator[Segment]:
        """Yield the last segments."""
        while self._ahead:
            yield from self._take()
        if self._pts:
            yield self._cut()

    def _take(self) -> Iterator[Segment]:
        """Move the next frame from `_ahead` to the open segment, and yield the segment if that is full.

        Frames without a time stamp, or with a damaged one, follow at the container's rate.
        """
        last, place, stamp = self._last_pts, self._place, self._ahead[0]
        is_first = last is None and not self._numbering.frames
        if is_first:
            self._numbering.clock.confirm_claim(self._ahead)
        if last is not None and self._numbering.evidence.is_near(place, place):
            stamp = likely_stamp(last, tuple(self._ahead), self._ticks_a_frame)
        elif stamp is None:
            self._numbering.start_is_made_up |= is_first
            stamp = 0 if last is None else last + self._ticks_a_frame
        self._last_pts = stamp
        self._ahead.popleft()
        self._pts.append(stamp)
        if len(self._pts) == self._segment_frames:
            yield self._cut()

    def _cut(self) -> Segment:
        pts = np.array(self._pts, dtype=np.int64)
        before = self._frames_before
        first_place = self._entry.ordinal + before
        segment = self._numbering.number(
            pts,
            np.arange(first_place, first_place + len(pts)),
            self._entry,
            before + len(pts),
            frames_before=before,
            skipped=self.skipped,
        )
        self._frames_before += len(pts)
        self._pts = []
        return segment
