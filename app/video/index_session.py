"""One pass over a video's packets: the facts at once, then its segments as they become known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Self

from app.errors import UnusableVideo
from app.video.damage import EvidenceList
from app.video.deaths import Deaths
from app.video.faults import error_of, over_limit
from app.video.frame_count import FrameCount
from app.video.planner import SegmentNumbering, SegmentPlanner, SerialNumbering, UnusableTimestamps
from app.video.process import ChildDied, ChildProcess, ChildSource
from app.video.protocol.facts import Proof, VideoFacts
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import (
    MOST_UNSENT_PACKETS,
    Command,
    DecoderProtocolError,
    Fault,
    FoundVideo,
    IndexEnd,
    Message,
    unpack_evidence,
    unpack_facts,
    unpack_packets,
)
from app.video.protocol.packets import MAX_REORDER, Entry, PacketRecord
from app.video.results import Cancelled, DecodingCancelled, IndexSummary
from app.video.sampling import Sampling
from app.video.segments import Segment

_MAX_DEATHS = 2
_POLL_SECONDS = 0.1
# With more packets, other children decode the first segments long before the index ends.
_MOST_PACKETS_TO_DECODE_AFTER = 10_000
# Containers that store the time stamps of frames. In others they follow from the frames' numbers.
_STAMPS_EVERY_FRAME = frozenset(("matroska", "mpegts", "mpeg", "flv", "mov"))
_USUAL_FRAME_SECONDS = Fraction(1, 25)  # where the container claims no frame rate


class IndexSession:
    """An iterator over a video's segments; closed by `with`. Not shared between threads.

    The constructor gets `facts`, and raises the errors of a video that cannot be used.
    """

    def __init__(
        self,
        source: ChildSource,
        *,
        limits: VideoLimits,
        segment_frames: int,
        sampling: Sampling,
        cancelled: Cancelled,
    ) -> None:
        self._source = source
        self._limits = limits
        self._cancelled = cancelled
        self._segment_frames = segment_frames
        self._child: ChildProcess | None = None
        self._packets = 0  # records received
        self._child_packets = 0  # of these, from the current child
        self._deaths = Deaths()
        self._end: IndexEnd | None = None
        self._is_counted = False  # frames were counted, because their time stamps do not tell them apart
        self._notes: list[str] = []
        self._summary: IndexSummary | None = None
        self._evidence = EvidenceList()
        self._has_turn = False  # to make a large index: one is made at a time
        found = self._open_video()
        self.facts: VideoFacts = found.facts
        self._enumerates_frames = found.enumerates_frames
        rate, time_base = self.facts.frame_rate, self.facts.time_base
        self._ticks_a_frame = None if rate is None else 1 / (rate * time_base)
        self._numbering = SegmentNumbering(
            sampling,
            time_base,
            evidence=self._evidence,
            nominal_step=self._ticks_a_frame,
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
        child, self._child = self._child, None
        if child is not None:
            child.close()
        if self._has_turn:
            self._has_turn = False
            self._source.large_turn.release()

    def _open_video(self) -> FoundVideo:
        try:
            while True:
                try:
                    return self._start_child()
                except (ChildDied, DecoderProtocolError) as error:
                    if not self._may_try_again():
                        raise UnusableVideo("Reading the video crashed or stalled the reader.") from error
        except BaseException:
            self.close()
            raise

    def _start_child(self) -> FoundVideo:
        self._child = self._source.acquire(1, self._cancelled)
        self._child.send(Command.INDEX)
        kind, payload = self._child.receive(self._cancelled)
        if kind is Message.LARGE:
            while not self._has_turn:  # a session whose child died still has its turn
                self._has_turn = self._source.large_turn.acquire(timeout=_POLL_SECONDS)
                if self._cancelled():
                    raise DecodingCancelled
            self._child.send(Command.OPEN)
            kind, payload = self._child.receive(self._cancelled)
        while kind is Message.EVIDENCE:
            self._take_evidence(payload)
            kind, payload = self._child.receive(self._cancelled)
        if kind is Message.FAULT:
            raise error_of(Fault.unpack(payload), memory_bytes=self._source.memory_bytes)
        if kind is not Message.FACTS:
            raise DecoderProtocolError("an index without facts")
        return unpack_facts(payload)

    def _may_try_again(self) -> bool:
        """Close the child that died, or wait if none could be started. False after too many deaths."""
        child, self._child = self._child, None
        if child is None:
            self._deaths.wait_after_failed_start(self._cancelled)
            return True
        self._deaths.bury(child, None)
        return self._deaths.total <= _MAX_DEATHS

    def _plan(self) -> Iterator[Segment]:
        try:
            yield from self._plan_by_packets()
        except UnusableTimestamps as unusable:
            self._notes.append(f"{unusable.reason}: frames are counted as they are decoded")
            yield from self._plan_by_count(unusable.entry, unusable.leading)
        self._summary = self._summarise()
        self.close()

    def _plan_by_packets(self) -> Iterator[Segment]:
        while self._end is None:
            for segment in self._planner.feed(self._next_packets()):
                yield self._within_limits(segment)
        last_segments: list[Segment] = []
        unusable: UnusableTimestamps | None = None
        try:
            for segment in self._planner.finish():
                last_segments.append(segment)  # noqa: PERF402 - those before a fault count
        except UnusableTimestamps as error:
            unusable = error
        child = self._child
        if (
            unusable is None
            and child is not None
            and child.threads == self._source.threads
            and self._packets <= _MOST_PACKETS_TO_DECODE_AFTER
            and not self._has_turn
        ):
            self._child = None
            self._source.give_back(child)  # before the segments are known, so that it decodes them
        for segment in last_segments:
            yield self._within_limits(segment)
        if unusable is not None:
            raise unusable

    def _plan_by_count(self, entry: Entry, leading: tuple[int, ...]) -> Iterator[Segment]:
        self.close()
        self._evidence.forget_from(entry.ordinal)
        count = FrameCount(self._source, entry, self._evidence, self._cancelled)
        ticks_a_frame = self._ticks_a_frame or _USUAL_FRAME_SECONDS / self.facts.time_base
        numberer = SerialNumbering(
            self._numbering,
            entry,
            segment_frames=self._segment_frames,
            leading=leading,
            ticks_a_frame=max(1, round(ticks_a_frame)),
        )
        count.next_place = lambda: numberer.next_place
        try:
            for stamps in count.run():
                for segment in numberer.feed(stamps, count.skipped):
                    yield self._within_limits(segment)
            for segment in numberer.finish(count.skipped):
                yield self._within_limits(segment)
        finally:
            count.close()
        self._end = count.end
        self._is_counted = True

    def _next_packets(self) -> list[PacketRecord]:
        """Return the next records, none at the end. If a child dies, another one reads on."""
        while True:
            try:
                return self._receive_packets()
            except (ChildDied, DecoderProtocolError):
                while self._may_try_again():
                    with suppress(ChildDied, DecoderProtocolError):
                        self._start_child()
                        self._child_packets = 0
                        break
                else:
                    self._notes.append("reading stopped where the data crashed or stalled the reader")
                    self._end = IndexEnd(read_errors=1, gave_up=True, lost=0, truncated=True)
                    return []

    def _receive_packets(self) -> list[PacketRecord]:
        assert self._child is not None  # noqa: S101 - between `_open_video` and `close`
        kind, payload = self._child.receive(self._cancelled)
        while kind is Message.EVIDENCE:
            self._take_evidence(payload)
            kind, payload = self._child.receive(self._cancelled)
        if kind is Message.INDEX_END:
            self._end = IndexEnd.unpack(payload)
            return []
        if kind is Message.FAULT:
            raise error_of(Fault.unpack(payload), memory_bytes=self._source.memory_bytes)
        if kind is not Message.PACKETS:
            raise DecoderProtocolError("an answer to another question")
        records = unpack_packets(payload, self._child_packets)
        self._child_packets += len(records)
        fresh = records[max(0, self._packets - self._child_packets + len(records)) :]
        self._packets = max(self._packets, self._child_packets)
        if self._packets > self._limits.max_frames:
            raise over_limit("max_frames", self._limits.max_frames, self._packets)
        return fresh

    def _take_evidence(self, payload: bytes) -> None:
        """Raise DecoderProtocolError for places that no packet can have: such evidence would pile up."""
        evidence = unpack_evidence(payload)
        if evidence.place > self._child_packets + MOST_UNSENT_PACKETS:
            raise DecoderProtocolError("evidence from beyond the packets")
        self._evidence.add(evidence)

    def _within_limits(self, segment: Segment) -> Segment:
        pixels = self.facts.width * self.facts.height * self._numbering.frames
        if pixels > self._limits.max_decoded_pixels:
            raise over_limit("max_decoded_pixels", self._limits.max_decoded_pixels, pixels)
        return segment

    def _summarise(self) -> IndexSummary:
        numbering, end, notes = self._numbering, self._end, self._notes
        assert end is not None  # noqa: S101 - after the pass
        numbering.finish()
        # Frames of which data is there, but neither a picture nor an id.
        without_id = max(self._planner.hidden_by_damage, end.lost if self._is_counted else 0)
        if end.read_errors:
            notes.append(f"reading failed {end.read_errors} times and went on after the damage")
        if end.lost and not self._is_counted:
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
            and not self._is_counted
            and numbering.clock.is_unbroken
            and not numbering.lost.total
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
            leading_frames=end.leading if self._is_counted and end.leading else self._planner.leading_frames,
            proof=Proof.TABLE if self._enumerates_frames else Proof.CLOCK if is_unbroken else Proof.NONE,
        )
