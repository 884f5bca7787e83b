"""One pass over a video's packets: the facts at once, then its segments as they become known."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Self

from app.errors import UnusableVideo
from app.video.damage import EvidenceList
from app.video.faults import over_limit
from app.video.planner import SegmentNumbering, SegmentPlanner, SerialNumbering, UnusableTimestamps
from app.video.process import ChildDied
from app.video.protocol.facts import Proof, VideoFacts
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import (
    MOST_UNSENT_PACKETS,
    Command,
    CountRequest,
    DecoderProtocolError,
    FoundVideo,
    IndexEnd,
    Message,
    unpack_evidence,
    unpack_facts,
    unpack_frames,
    unpack_packets,
)
from app.video.protocol.packets import MAX_REORDER, Entry, PacketRecord
from app.video.results import IndexSummary, WorkCancelled
from app.video.sampling import Sampling
from app.video.segments import Segment
from app.video.session_child import SessionChild

_MAX_DEATHS = 2
_MAX_DEATHS_OF_COUNT = 12
_POLL_SECONDS = 0.1
# With more packets, other children decode the first segments long before the index ends.
_MOST_PACKETS_TO_DECODE_AFTER = 10_000
# Containers that store the time stamps of frames. In others they follow from the frames' numbers.
_STAMPS_EVERY_FRAME = frozenset(("matroska", "mpegts", "mpeg", "flv", "mov"))
_USUAL_FRAME_SECONDS = Fraction(1, 25)  # where the container claims no frame rate
_GAVE_UP = IndexEnd(read_errors=1, gave_up=True, lost=0, truncated=True)  # after too many deaths


class IndexSession:
    """An iterator over a video's segments; closed by `with`. Not shared between threads.

    The constructor gets `facts`, and raises the errors of a video that cannot be used. `large_turn` is held
    while a video is indexed whose index takes much memory.
    """

    def __init__(
        self,
        child: SessionChild,
        *,
        large_turn: threading.Semaphore,
        limits: VideoLimits,
        segment_frames: int,
        sampling: Sampling,
    ) -> None:
        self._child = child
        self._large_turn = large_turn
        self._has_turn = False
        self._limits = limits
        self._segment_frames = segment_frames
        self._packets = 0  # records received
        self._child_packets = 0  # of these, from the current child
        self._end: IndexEnd | None = None
        self._serial: SerialNumbering | None = None  # if frames are counted: time stamps do not identify them
        self._notes: list[str] = []
        self._summary: IndexSummary | None = None
        self._evidence = EvidenceList()
        found = self._open_video()
        self.facts: VideoFacts = found.facts
        self._enumerates_frames = found.enumerates_frames
        rate, time_base = self.facts.frame_rate, self.facts.time_base
        self._numbering = SegmentNumbering(
            sampling,
            time_base,
            evidence=self._evidence,
            nominal_step=None if rate is None else 1 / (rate * time_base),
            max_frames=limits.max_frames,
        )
        self._planner = SegmentPlanner(
            self._numbering, segment_frames=segment_frames, first_shown_pts=found.first_shown_pts
        )
        self._segments = self._plan()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Segment]:
        return self._segments

    @property
    def summary(self) -> IndexSummary:
        """What the whole pass has found. ValueError before the end of the iteration."""
        if self._summary is None:
            raise ValueError("the video is not indexed yet")
        return self._summary

    def close(self) -> None:
        """End the pass, wherever it is."""
        self._segments.close()
        self._release()

    def _release(self) -> None:
        self._child.end()
        if self._has_turn:
            self._has_turn = False
            self._large_turn.release()

    def _open_video(self) -> FoundVideo:
        try:
            while True:
                try:
                    return self._start_child()
                except (ChildDied, DecoderProtocolError) as error:
                    self._child.bury(None)
                    if self._child.deaths > _MAX_DEATHS:
                        raise UnusableVideo("Reading the video crashed or stalled the reader.") from error
        except BaseException:
            self._release()
            raise

    def _start_child(self) -> FoundVideo:
        self._child_packets = 0
        child = self._child.start(1)
        child.send(Command.INDEX)
        kind, payload = self._receive(Message.FACTS, Message.LARGE)
        if kind is Message.LARGE:
            while not self._has_turn:  # a session whose child died still has its turn
                self._has_turn = self._large_turn.acquire(timeout=_POLL_SECONDS)
                if self._child.cancelled():
                    raise WorkCancelled
            child.send(Command.OPEN)
            _, payload = self._receive(Message.FACTS)
        return unpack_facts(payload)

    def _receive(self, *kinds: Message) -> tuple[Message, bytes]:
        """Return the child's next message, which is of one of `kinds`, and take the evidence before it."""
        while True:
            kind, payload = self._child.receive(Message.EVIDENCE, *kinds)
            if kind is not Message.EVIDENCE:
                return kind, payload
            evidence = unpack_evidence(payload)
            if self._serial is not None:
                evidence = replace(evidence, place=self._serial.next_place)
            elif evidence.place > self._child_packets + MOST_UNSENT_PACKETS:
                # No packet can have that place, and such evidence would pile up.
                raise DecoderProtocolError("evidence from beyond the packets")
            self._evidence.add(evidence)

    def _plan(self) -> Generator[Segment, None, None]:
        last_segments: list[Segment] = []
        unusable: UnusableTimestamps | None = None
        try:
            while self._end is None:
                for segment in self._planner.feed(self._next_packets()):
                    yield self._within_limits(segment)
            for segment in self._planner.finish():
                last_segments.append(segment)  # noqa: PERF402 - those before a fault count
        except UnusableTimestamps as error:
            unusable = error
        child = self._child.process
        if (
            unusable is None
            and child is not None
            and child.threads == self._child.usual_threads
            and self._packets <= _MOST_PACKETS_TO_DECODE_AFTER
            and not self._has_turn
        ):
            self._child.end(is_reusable=True)  # before the segments are known, so that it decodes them
        for segment in last_segments:
            yield self._within_limits(segment)
        if unusable is not None:
            self._notes.append(f"{unusable.reason}: frames are counted as they are decoded")
            yield from self._plan_by_count(unusable.entry, unusable.leading)
        self._summary = self._summarise()
        self._release()

    def _next_packets(self) -> list[PacketRecord]:
        """Return the next records, none at the end. If a child dies, another one reads on."""
        try:
            if self._child.process is None:
                self._start_child()
            kind, payload = self._receive(Message.PACKETS, Message.INDEX_END)
            if kind is Message.INDEX_END:
                self._end = IndexEnd.unpack(payload)
                return []
            records = unpack_packets(payload, self._child_packets)
        except (ChildDied, DecoderProtocolError):
            self._child.bury(None)
            if self._child.deaths > _MAX_DEATHS:
                self._notes.append("reading stopped where the data crashed or stalled the reader")
                self._end = _GAVE_UP
            return []
        self._child_packets += len(records)
        fresh = records[max(0, self._packets - self._child_packets + len(records)) :]
        self._packets = max(self._packets, self._child_packets)
        if self._packets > self._limits.max_frames:
            raise over_limit("max_frames", self._limits.max_frames, self._packets)
        return fresh

    def _plan_by_count(self, entry: Entry, leading: tuple[int, ...]) -> Iterator[Segment]:
        """Yield the segments of the frames that a decoder returns from `entry` on.

        If a child dies, another one goes on, without the packets that kill decoders.
        """
        self._release()
        self._child = replace(self._child)  # as new: the deaths until here do not count
        self._evidence.forget_from(entry.ordinal)
        ticks_a_frame = self._numbering.nominal_step or _USUAL_FRAME_SECONDS / self.facts.time_base
        serial = self._serial = SerialNumbering(
            self._numbering,
            entry,
            segment_frames=self._segment_frames,
            leading=leading,
            ticks_a_frame=max(1, round(ticks_a_frame)),
        )
        self._end = None
        counted = repeated = 0  # frames; those that the current child has yet to decode again
        while self._end is None and self._child.deaths <= _MAX_DEATHS_OF_COUNT:
            try:
                if self._child.process is None:
                    repeated = counted
                    self._child.start(1).send(Command.COUNT, CountRequest(entry, serial.skipped).pack())
                kind, payload = self._receive(Message.FRAMES, Message.INDEX_END)
                if kind is Message.INDEX_END:
                    self._end = IndexEnd.unpack(payload)
                    continue
                stamps = unpack_frames(payload)
            except (ChildDied, DecoderProtocolError):
                poison = self._child.bury(entry.ordinal)
                if poison is not None and poison >= entry.ordinal:
                    serial.skipped = (*serial.skipped, poison)
                continue
            fresh, repeated = stamps[repeated:], max(0, repeated - len(stamps))
            counted += len(fresh)
            for segment in serial.feed(fresh):
                yield self._within_limits(segment)
        self._end = self._end or _GAVE_UP
        for segment in serial.finish():
            yield self._within_limits(segment)

    def _within_limits(self, segment: Segment) -> Segment:
        pixels = self.facts.width * self.facts.height * self._numbering.frames
        if pixels > self._limits.max_decoded_pixels:
            raise over_limit("max_decoded_pixels", self._limits.max_decoded_pixels, pixels)
        return segment

    def _summarise(self) -> IndexSummary:
        numbering, end, notes = self._numbering, self._end, self._notes
        is_counted = self._serial is not None
        assert end is not None  # noqa: S101 - after the pass
        numbering.finish()
        # Frames of which data is there, but neither a picture nor an id.
        without_id = max(self._planner.hidden_by_damage, end.lost if is_counted else 0)
        if end.read_errors:
            notes.append(f"reading failed {end.read_errors} times and went on after the damage")
        if end.lost and not is_counted:
            notes.append(f"the file ends before {end.lost} frames of which its header tells")
        if without_id:
            notes.append(f"no picture came of the data of {without_id} frames, which have no ids")
        if end.claimed_seconds is not None:
            notes.append(f"the header claims {end.claimed_seconds:.3f} seconds, and the frames end before")
        if numbering.unsure_from is not None:
            notes.append(
                f"from frame {numbering.unsure_from} on, ids may differ from those in the intact video:"
                " frames are missing, and the clock does not tell how many"
            )
        is_unbroken = (
            self.facts.container in _STAMPS_EVERY_FRAME
            and not is_counted
            and numbering.clock.is_unbroken
            and not numbering.lost.frames
        )
        # No frame is missing between frames of an unbroken clock, but some may be at either end.
        safe = range(MAX_REORDER + 1, self._packets - MAX_REORDER) if is_unbroken else range(0)
        return IndexSummary(
            frames_indexed=numbering.frames,
            frames_wanted=numbering.frames_wanted,
            segments=numbering.segments,
            start_pts=numbering.start_pts,
            duration_seconds=numbering.duration_seconds,
            variable_frame_rate=numbering.clock.is_variable,
            truncated=end.truncated or end.gave_up,
            frames_without_id=without_id,
            notes=tuple(notes),
            lost=numbering.lost,
            damage=self._evidence.report(safe),
            damage_total=self._evidence.total,
            is_damage_harmless=self._evidence.lies_within(safe),
            leading_frames=end.leading if is_counted and end.leading else self._planner.leading_frames,
            proof=Proof.TABLE if self._enumerates_frames else Proof.CLOCK if is_unbroken else Proof.NONE,
        )
