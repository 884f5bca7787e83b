"""Count frames by decoding them, and leave out packets that kill decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from app.video.damage import EvidenceList
from app.video.deaths import Deaths
from app.video.faults import error_of
from app.video.process import ChildDied, ChildProcess, ChildSource
from app.video.protocol.messages import (
    Command,
    CountRequest,
    DecoderProtocolError,
    Fault,
    IndexEnd,
    Message,
    unpack_evidence,
    unpack_frames,
)
from app.video.protocol.packets import Entry
from app.video.results import Cancelled

_MAX_DEATHS = 12


class FrameCount:
    """One count, from an entry to the video's end. If a child dies, another one goes on."""

    def __init__(
        self, source: ChildSource, entry: Entry, evidence: EvidenceList, cancelled: Cancelled
    ) -> None:
        self._source = source
        self._entry = entry
        self._evidence = evidence  # added to, with the place of the frame that comes next
        self._cancelled = cancelled
        self.next_place: Callable[[], int] = lambda: entry.ordinal
        self._child: ChildProcess | None = None
        self._deaths = Deaths()
        self._frames = 0  # yielded
        self.skipped: tuple[int, ...] = ()  # packets that kill decoders
        self.end = IndexEnd(read_errors=1, gave_up=True, lost=0, truncated=True)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def run(self) -> Iterator[list[int | None]]:
        """Yield the time stamps of the frames as they come; `end` is set after the last."""
        while self._deaths.total <= _MAX_DEATHS:
            try:
                yield from self._attempt()
            except (ChildDied, DecoderProtocolError):
                child, self._child = self._child, None
                if child is None:
                    self._deaths.wait_after_failed_start(self._cancelled)
                    continue
                poison = self._deaths.bury(child, self._entry.ordinal)
                if poison is not None and poison >= self._entry.ordinal:
                    self.skipped = (*self.skipped, poison)
            else:
                return

    def _attempt(self) -> Iterator[list[int | None]]:
        self._child = self._source.acquire(1, self._cancelled)
        self._child.send(Command.COUNT, CountRequest(self._entry, self.skipped).pack())
        known = self._frames
        while True:
            kind, payload = self._child.receive(self._cancelled)
            if kind is Message.INDEX_END:
                self.end = IndexEnd.unpack(payload)
                return
            if kind is Message.FAULT:
                raise error_of(Fault.unpack(payload), memory_bytes=self._source.memory_bytes)
            if kind is Message.EVIDENCE:
                self._evidence.add(replace(unpack_evidence(payload), place=self.next_place()))
                continue
            if kind is not Message.FRAMES:
                raise DecoderProtocolError("an answer to another question")
            stamps = unpack_frames(payload)
            fresh, known = stamps[known:], max(0, known - len(stamps))
            self._frames += len(fresh)
            if fresh:
                yield fresh
