"""Decode the frames of one segment in batches, even if decoder children die.

When a child dies, a new one with a single thread continues from the first batch that was not delivered. A
packet at which two children died is left out. After a few such packets, decoding continues at the segment's
next entry, and the frames between are reported. Every step leaves less to decode, so it ends.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt

from app.video.faults import error_of
from app.video.process import ChildDied, ChildProcess
from app.video.protocol.messages import (
    BatchMessage,
    Command,
    DecodeRequest,
    DecoderProtocolError,
    Fault,
    FaultCode,
    FrameStatus,
    Message,
    unpack_statuses,
)
from app.video.results import DecodeOutcome, FrameBatch
from app.video.segments import FrameRange, Segment
from app.video.session_child import SessionChild

_MAX_DEATHS = 12  # of children per segment
_MAX_SKIPPED = 3  # packets left out, from one entry
_SECONDS_A_PACKET = 4.0  # that a decoder may take on average: a very large picture on a busy machine
_PACKETS_READ_A_SECOND = 500

_REASONS = {
    FrameStatus.NOT_SEEN: "the decoder gave no picture",
    FrameStatus.REJECTED: "the decoder refused the data",
    FrameStatus.NOT_SHOWN: "the decoder gave no picture",
    FrameStatus.NO_PACKET: "the data is missing from the file",
    FrameStatus.OUT_OF_ORDER: "the frame came out of order",
    FrameStatus.SKIPPED: "the data crashed or stalled the decoder",
}
_HAS_PICTURE = (FrameStatus.DECODED, FrameStatus.CORRUPT)


class DecodeSession:
    """An iterator over the batches of one segment; closed by `with`. Not shared between threads.

    Batches may be released in any order and from any thread; at most `slot_count` can be held at a time.
    """

    def __init__(
        self,
        child: SessionChild,
        segment: Segment,
        *,
        frame_size: tuple[int, int],
        batch_size: int,
        slot_count: int,
    ) -> None:
        self.batch_size = batch_size  # frames per batch: as requested, or as many as fit in the ring
        self.slot_count = slot_count
        self._child = child
        self._segment = segment
        self._frame_size = frame_size
        self._frame_ids = segment.frame_ids
        self._held: set[int] = set()  # slots in the consumer's hands
        self._statuses = np.zeros(segment.frame_count, dtype=np.uint8)
        self._next_rank = 0  # the first frame that is neither delivered nor given up
        self._has_starved = False  # a child ran out of memory
        self._outcome: DecodeOutcome | None = None
        self._batches = self._decode_segment()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[FrameBatch]:
        return self._batches

    @property
    def outcome(self) -> DecodeOutcome:
        """What happened to the segment's frames. ValueError before the end of the iteration."""
        if self._outcome is None:
            raise ValueError("the segment is not decoded yet")
        return self._outcome

    def close(self) -> None:
        """End the session. If it is done and all batches are released, its child can serve another one."""
        self._batches.close()
        self._child.end(is_reusable=self._outcome is not None and not self._held)

    def _decode_segment(self) -> Generator[FrameBatch, None, None]:
        segment = self._segment
        request = self._request_from(0, skipped=segment.skipped)
        while request is not None:
            try:
                yield from self._attempt(request)
            except (ChildDied, DecoderProtocolError):
                request = self._after_death(request)
            else:
                end = request.entry.ordinal + request.packet_count
                is_last = end >= segment.entry.ordinal + segment.packet_count
                request = None if is_last else self._pass_over(end)
        statuses = self._statuses
        if self._child.deaths > _MAX_DEATHS:
            self._give_up(len(statuses))
        if self._has_starved:
            statuses[statuses == FrameStatus.SKIPPED] = FrameStatus.OUT_OF_MEMORY
        limit = f"FRAMEBOX_DECODER_MEMORY_BYTES={self._child.memory_bytes}"
        no_memory = f"the decoder needs more memory than {limit}"
        reasons = {**_REASONS, FrameStatus.OUT_OF_MEMORY: no_memory}
        has_picture = np.isin(statuses, _HAS_PICTURE)
        missing = segment.wanted & ~has_picture
        corrupt = segment.wanted & (statuses == FrameStatus.CORRUPT)
        after_damage = _are_after_damage(segment, missing | corrupt)
        doubtful = segment.wanted & has_picture & ~corrupt & after_damage
        self._outcome = DecodeOutcome(
            frames_decoded=int(np.count_nonzero(segment.wanted & has_picture)),
            undecodable=_ranges(self._frame_ids, missing, statuses, reasons),
            corrupt=_ranges(self._frame_ids, corrupt, statuses, reasons),
            doubtful=_ranges(self._frame_ids, doubtful, statuses, reasons),
        )

    # -- one request to one child

    def _attempt(self, request: DecodeRequest) -> Iterator[FrameBatch]:
        child = self._child.process
        if child is None:
            # Frames that are counted must be counted as they were when the video was indexed.
            is_single = request.frames_before is not None or self._child.deaths > 0
            child = self._child.start(1 if is_single else None)
            child.pin_pictures()
        child.send(Command.DECODE, request.pack())
        packets = request.packet_count
        to_read = request.entry.ordinal + packets
        # What the request may take, without the time in which the consumer works on a batch.
        left_seconds = 120 + packets * _SECONDS_A_PACKET + to_read / _PACKETS_READ_A_SECOND
        while True:
            if len(self._held) >= self.slot_count:
                raise RuntimeError("every batch is still held: release one before asking for the next")
            started = time.monotonic()
            kind, payload = self._child.receive(
                Message.BATCH, Message.SEGMENT_END, Message.FAULT, deadline=started + left_seconds
            )
            left_seconds -= time.monotonic() - started
            if kind is Message.BATCH:
                yield self._batch(child, request, BatchMessage.unpack(payload))
            elif kind is Message.SEGMENT_END:
                statuses = unpack_statuses(payload, len(request.pts))
                delivered = np.isin(self._statuses, _HAS_PICTURE)
                claimed = np.isin(statuses, _HAS_PICTURE) & request.wanted
                if bool((claimed & ~delivered).any()):
                    raise DecoderProtocolError("frames that were decoded but not delivered")
                open_frames = request.wanted & (~delivered | (statuses == FrameStatus.CORRUPT))
                self._statuses[open_frames] = statuses[open_frames]
                return
            else:
                fault = Fault.unpack(payload)
                if fault.code is FaultCode.ENTRY_NOT_FOUND:
                    raise ChildDied("does not find the entry")
                if fault.code is FaultCode.OUT_OF_MEMORY:
                    self._has_starved = True
                    raise ChildDied("needs more memory than it may take")
                raise error_of(fault, memory_bytes=self._child.memory_bytes)

    def _batch(self, child: ChildProcess, request: DecodeRequest, message: BatchMessage) -> FrameBatch:
        ranks = np.array(message.ranks, dtype=np.int64)
        is_as_requested = (
            0 <= message.slot < self.slot_count
            and message.slot not in self._held
            and len(ranks) <= request.batch_size
            and ranks[0] >= self._next_rank
            and ranks[-1] < len(request.pts)
            and bool((np.diff(ranks) > 0).all())
            and bool(request.wanted[ranks].all())
        )
        if not is_as_requested:
            raise DecoderProtocolError("a batch that was not requested")
        if request.frames_before is None and not np.array_equal(request.pts[ranks], message.pts):
            raise DecoderProtocolError("frames with other time stamps")

        def release() -> None:
            self._held.discard(message.slot)
            if child is self._child.process:
                with suppress(ChildDied):  # the session notices when it asks for the next batch
                    child.send(Command.RELEASE, message.slot.to_bytes(4, "little"))

        size = request.batch_size * request.frame_bytes
        slot = child.pictures[message.slot * size : (message.slot + 1) * size]
        shape = (request.batch_size, request.height, request.width, 3)
        self._held.add(message.slot)
        self._statuses[ranks] = FrameStatus.DECODED
        self._next_rank = int(ranks[-1]) + 1
        return FrameBatch(
            frame_ids=self._frame_ids[ranks],
            pts=self._segment.pts[ranks],
            frames=slot.reshape(shape)[: len(ranks)],
            source_size=(message.source_width, message.source_height),
            on_release=release,
        )

    # -- the next request

    def _request_from(
        self, first_rank: int, *, skipped: tuple[int, ...], at_least: int = -1, packets_end: int | None = None
    ) -> DecodeRequest | None:
        """Return the request for the wanted frames from `first_rank` on; None if there are none.

        Decoding starts at packet `at_least` or later, and ends before packet `packets_end`.
        """
        segment = self._segment
        wanted = segment.wanted.copy()
        wanted[:first_rank] = False
        entries = [(segment.entry, 0), *segment.later_entries]
        usable = [(entry, first) for entry, first in entries if entry.ordinal >= at_least]
        if not wanted.any() or not usable:
            return None
        rank = int(np.argmax(wanted))
        entry = [entry for entry, first in usable if first <= rank or entry is usable[0][0]][-1]
        end = segment.entry.ordinal + segment.packet_count
        end = end if packets_end is None else min(end, packets_end)
        width, height = self._frame_size
        return DecodeRequest(
            entry=entry,
            packet_count=end - entry.ordinal,
            pts=segment.pts,
            wanted=wanted,
            frames_before=segment.frames_before,
            width=width,
            height=height,
            batch_size=self.batch_size,
            slot_count=self.slot_count,
            skipped=skipped,
        )

    def _after_death(self, request: DecodeRequest) -> DecodeRequest | None:
        first, was_started = request.entry.ordinal, self._child.process is not None
        poison = self._child.bury(first)
        if not was_started:
            return request
        self._held.clear()
        if self._child.deaths > _MAX_DEATHS:
            return None
        skipped, packets_end = request.skipped, None
        if poison is not None:
            if poison < first or self._segment.frames_before is not None:
                return self._pass_over(first + 1)
            if len(skipped) < _MAX_SKIPPED:
                skipped = (*skipped, poison)
            else:
                packets_end = poison
        return self._request_from(self._next_rank, skipped=skipped, at_least=first, packets_end=packets_end)

    def _pass_over(self, at_least: int) -> DecodeRequest | None:
        """Give up the undelivered frames before the next entry at or after packet `at_least`."""
        for entry, first_rank in self._segment.later_entries:
            if entry.ordinal >= at_least:
                self._give_up(first_rank)
                return self._request_from(first_rank, skipped=(), at_least=entry.ordinal)
        self._give_up(len(self._statuses))
        return None

    def _give_up(self, end: int) -> None:
        open_frames = self._segment.wanted.copy()
        open_frames[: self._next_rank] = False
        open_frames[end:] = False
        self._statuses[open_frames & ~np.isin(self._statuses, _HAS_PICTURE)] = FrameStatus.SKIPPED
        self._next_rank = max(self._next_rank, end)


def _are_after_damage(segment: Segment, damaged: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which frames are decoded after a damaged or lost frame and before a clean keyframe, (n,) bool.

    Their pictures are built on what the decoder put in place of that frame.
    """
    found = np.zeros(len(damaged), dtype=np.bool_)
    order, clean = segment.packet_offsets, segment.clean_offsets
    if order is None or clean is None:
        return found
    starts = order[damaged].tolist() + [min(order[rank - 1 : rank + 1]) for rank, _ in segment.lost_before]
    ends = np.append(clean, np.iinfo(np.int32).max)[np.searchsorted(clean, starts, side="right")]
    for start, end in zip(starts, ends, strict=True):
        found |= (order > start) & (order < end)
        found[: np.argmax(order == end)] |= order[: np.argmax(order == end)] > end  # its leading pictures
    return found


def _ranges(
    frame_ids: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    statuses: npt.NDArray[np.uint8],
    reasons: dict[FrameStatus, str],
) -> tuple[FrameRange, ...]:
    ranges: list[FrameRange] = []
    for frame_id, status in zip(frame_ids[mask].tolist(), statuses[mask].tolist(), strict=True):
        reason = reasons.get(FrameStatus(status), "")
        last = ranges[-1] if ranges else None
        if last is not None and last.last == frame_id - 1 and last.reason == reason:
            ranges[-1] = replace(last, last=frame_id)
        else:
            ranges.append(FrameRange(frame_id, frame_id, reason))
    return tuple(ranges)
