"""Children that die: whose fault it was, and when to try again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from app.errors import InternalError
from app.video.process import ChildProcess
from app.video.source import DecodingCancelled

_MAX_KILLED_BY_OTHERS = 8  # beyond it the kernel may kill for memory that the video takes
_FIRST_PAUSE_SECONDS = 0.1  # after a child that could not be started; each pause is twice the one before
_LONGEST_PAUSE_SECONDS = 5.0
_MAX_FAILED_STARTS = 30  # in a row: two minutes
_POLL_SECONDS = 0.1


class Deaths:
    """The children that one piece of work has cost, and where they died."""

    def __init__(self) -> None:
        self.total = 0
        self.threads: int | None = None  # None: as many as usual; after a first death, one
        self._failed_starts = 0
        self._by_others = 0
        self._at: Counter[int | None] = Counter()
        self._last: tuple[int | None, int] = (None, 0)

    def wait_after_failed_start(self, cancelled: Callable[[], bool]) -> None:
        """Return when it is time to try again: whatever kept a child from starting may have passed.

        Raises InternalError if no child could be had for minutes; DecodingCancelled.
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

        `first_packet` is that at which the child began to decode; None if it was to read only. A death by
        others is not the video's, and not counted.
        """
        fed = first_packet + child.packets_fed if first_packet is not None and child.packets_fed else None
        is_excused = self._is_excused(child)
        child.close()
        return None if is_excused else self._note(fed, child.threads)

    def _is_excused(self, child: ChildProcess) -> bool:
        """Whether others killed `child`, which has ended: not the video's fault, unless it goes on and on."""
        self._failed_starts = 0
        if not child.was_killed_by_others():
            return False
        self._by_others += 1
        return self._by_others <= _MAX_KILLED_BY_OTHERS

    def _note(self, fed: int | None, threads: int) -> int | None:
        """Take note of a death after packet `fed` - 1, and return that packet if it has killed twice.

        Several threads work on several packets at once: there the packet is one of the last few.
        """
        self.total += 1
        self.threads = 1
        previous, previous_threads = self._last
        self._last = (fed, threads)
        self._at[fed] += 1
        if fed is None:
            return -1 if self._at[None] > 1 else None
        is_near = (
            previous is not None and previous_threads > 1 and 0 <= previous - fed <= 2 * previous_threads
        )
        if self._at[fed] > 1 or is_near:
            return fed - 1
        return None
