"""Children that are forked and locked down in advance, so that no work waits for that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from app.restarts import pause_seconds
from app.video.process import ChildDied, ChildProcess
from app.video.protocol.messages import DecoderProtocolError
from app.video.results import Cancelled, DecodingCancelled


class ReadyChildren:
    """Up to `count` children without a video, started by a thread from `start` to `close`.

    The thread calls `make`; if that raises ChildDied, the thread calls it again after a pause.
    """

    def __init__(self, count: int, make: Callable[[Cancelled], ChildProcess]) -> None:
        self._count = count
        self._make = make
        self._children: deque[ChildProcess] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="ready-children", daemon=True)

    def start(self) -> None:
        if self._count:
            self._thread.start()

    def close(self) -> None:
        """End the thread and the children that were not taken."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        while (child := self._pop()) is not None:
            child.close()

    def take(self) -> ChildProcess | None:
        """Return the living child that has waited longest, None if there is none. It will be replaced."""
        while (child := self._pop()) is not None:
            if child.is_waiting:
                return child
            child.close()
        return None

    def __len__(self) -> int:
        return len(self._children)

    def _pop(self) -> ChildProcess | None:
        with self._changed:
            self._changed.notify_all()
            return self._children.popleft() if self._children else None

    def _fill(self) -> None:
        failures = 0
        while not self._closing.wait(pause_seconds(failures)):
            with self._changed:
                self._changed.wait_for(lambda: self._closing.is_set() or len(self._children) < self._count)
            if self._closing.is_set():
                return
            try:
                child = self._make(self._closing.is_set)
            except (ChildDied, DecoderProtocolError):
                failures += 1
            except DecodingCancelled:
                return
            else:
                failures = 0
                with self._changed:
                    self._children.append(child)
