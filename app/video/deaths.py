"""Deaths of children: whether the video is at fault, and when to try again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from app.errors import InternalError
from app.video.process import ChildProcess
from app.video.results import DecodingCancelled

_MAX_KILLED_BY_OTHERS = 8  # with more, the kernel may be killing children for memory that the video takes
_FIRST_PAUSE_SECONDS = 0.1  # after a child that could not be started; each pause is twice the one before
_LONGEST_PAUSE_SECONDS = 5.0
_MAX_FAILED_STARTS = 30  # in a row: two minutes
_POLL_SECONDS = 0.1


class Deaths:
    """How many children one piece of work has cost, and where they died."""

    def __init__(self) -> None:
        self.total = 0
        self.threads: int | None = None  # for the next child. None: as many as usual; after a death, one
        self._failed_starts = 0
        self._by_others = 0
        self._at: Counter[int | None] = Counter()
        self._last: tuple[int | None, int] = (None, 0)

    def wait_after_failed_start(self, cancelled: Callable[[], bool]) -> None:
        """Wait before the next try: what kept a child from starting may have passed by then.

        Raises InternalError if no child could be started for minutes; DecodingCancelled.
        """
        self._failed_starts += 1
        if self._failed_starts > _MAX_FAILED_STARTS:
            raise InternalError("No decoder could be started.")
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (self._failed_starts - 1))
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            if cancelled():
                raise DecodingCancelled
            threading.Event().wait(min(left, _POLL_SECONDS))

    def bury(self, child: ChildProcess, first_packet: int | None) -> int | None:
        """Close `child`, which died, and return the packet that has killed twice by now, if one has.

        `first_packet` is where the child began to decode; None if it only read. If another process killed the
        child, it is not the video's fault and does not count, unless it happens again and again.
        """
        fed = first_packet + child.packets_fed if first_packet is not None and child.packets_fed else None
        self._failed_starts = 0
        was_killed_by_others = child.was_killed_by_others()
        child.close()
        if was_killed_by_others:
            self._by_others += 1
            if self._by_others <= _MAX_KILLED_BY_OTHERS:
                return None
        self.total += 1
        self.threads = 1
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
