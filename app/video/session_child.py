"""The decoder child of one session: replaced when it dies, unless the video has killed too many."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from app.errors import InternalError
from app.video.faults import error_of
from app.video.process import ChildProcess
from app.video.protocol.messages import DecoderProtocolError, Fault, Message
from app.video.results import Cancelled, WorkCancelled

_MAX_KILLED_BY_OTHERS = 8  # with more, the kernel may be killing children for memory that the video takes
_FIRST_PAUSE_SECONDS = 0.1  # after a child that could not be started; each pause is twice the one before
_LONGEST_PAUSE_SECONDS = 5.0
_MAX_FAILED_STARTS = 30  # in a row: two minutes
_POLL_SECONDS = 0.1


@dataclass(slots=True, eq=False)
class SessionChild:
    """The children that one session takes for its video, one after another, and where they died."""

    acquire: Callable[[int | None], ChildProcess]  # with that many threads; None: as many as usual
    give_back: Callable[[ChildProcess], None]
    cancelled: Cancelled
    memory_bytes: int  # address space that a child may take
    usual_threads: int  # of FFmpeg
    process: ChildProcess | None = field(default=None, init=False)  # the one at work
    deaths: int = field(default=0, init=False)  # without those that are not the video's fault
    _failed_starts: int = field(default=0, init=False)
    _killed_by_others: int = field(default=0, init=False)
    _at: Counter[int | None] = field(default_factory=Counter, init=False)  # deaths, by packet
    _last: tuple[int | None, int] = field(default=(None, 0), init=False)  # (packet, threads)

    def start(self, threads: int | None) -> ChildProcess:
        """Take a child with `threads` threads of FFmpeg, or as many as usual if None.

        Raises ChildDied, WorkCancelled.
        """
        self.process = self.acquire(threads)
        return self.process

    def receive(self, *kinds: Message, deadline: float | None = None) -> tuple[Message, bytes]:
        """Return the child's next message, which is of one of `kinds`.

        Raises the error of a fault, unless FAULT is one of them; DecoderProtocolError for other messages; and
        the errors of `ChildProcess.receive`.
        """
        assert self.process is not None  # noqa: S101 - it is started
        kind, payload = self.process.receive(self.cancelled, deadline=deadline)
        if kind in kinds:
            return kind, payload
        if kind is Message.FAULT:
            raise error_of(Fault.unpack(payload), memory_bytes=self.memory_bytes)
        raise DecoderProtocolError("an answer to another question")

    def end(self, *, is_reusable: bool = False) -> None:
        """Close the child, or let it serve another session if it `is_reusable`."""
        child, self.process = self.process, None
        if child is not None and is_reusable:
            self.give_back(child)
        elif child is not None:
            child.close()

    def bury(self, first_packet: int | None) -> int | None:
        """Close the child, which died, and return the packet that has killed twice by now, if one has.

        `first_packet` is where the child began to decode; None if it only read. If another process killed the
        child, it is not the video's fault and does not count, unless it happens again and again. If no child
        could be started, wait: the cause may pass. Raises InternalError after minutes of that;
        WorkCancelled.
        """
        child = self.process
        if child is None:
            self._wait_after_failed_start()
            return None
        fed = first_packet + child.packets_fed if first_packet is not None and child.packets_fed else None
        self._failed_starts = 0
        was_killed_by_others = child.was_killed_by_others()
        self.end()
        if was_killed_by_others:
            self._killed_by_others += 1
            if self._killed_by_others <= _MAX_KILLED_BY_OTHERS:
                return None
        self.deaths += 1
        previous, previous_threads = self._last
        self._last = (fed, child.threads)
        self._at[fed] += 1
        if fed is None:
            return -1 if self._at[None] > 1 else None
        # Several threads decode several packets at once: then the packet is one of the last few.
        is_near = (
            previous is not None and previous_threads > 1 and 0 <= previous - fed <= 2 * previous_threads
        )
        return fed - 1 if self._at[fed] > 1 or is_near else None

    def _wait_after_failed_start(self) -> None:
        self._failed_starts += 1
        if self._failed_starts > _MAX_FAILED_STARTS:
            raise InternalError("No decoder could be started.")
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (self._failed_starts - 1))
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            if self.cancelled():
                raise WorkCancelled
            threading.Event().wait(min(left, _POLL_SECONDS))
