"""How fast jobs run, and how long they will take at that pace."""

from __future__ import annotations

import threading
from collections import Counter

MAX_MEMORY_SECONDS = 120.0  # an older pace counts little: other jobs have started or ended since
STALLED_SECONDS = 10.0  # a job without a new frame for this long stands still


class FrameMeter:
    """Counts the frames of running segments, by job. Safe to use from many threads."""

    def __init__(self) -> None:
        self._frames: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, job_id: str, frames: int) -> None:
        with self._lock:
            self._frames[job_id] += frames

    def of(self, job_id: str) -> int:
        """Return the frames since `forget`, including those of unfinished segments."""
        with self._lock:
            return self._frames[job_id]

    def forget(self, job_id: str) -> None:
        with self._lock:
            del self._frames[job_id]


class Pace:
    """A job's frames per second, the latest counting most. Not shared between threads.

    A mean whose memory is half the time since the first frame: the slow start is soon forgotten, and later a
    batch more or less does not show.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._noted_at = 0.0
        self._frames = 0
        self.frames_per_second: float | None = None  # None: not known yet

    def note(self, frames: int, now: float) -> None:
        """Note that `frames` are done at `now`, in seconds of a monotonic clock."""
        if self._started is None:
            if frames:
                self._started, self._noted_at, self._frames = now, now, frames
            return
        passed = now - self._noted_at
        if passed <= 0 or (frames == self._frames and passed < STALLED_SECONDS):
            return  # frames come in batches, and the next one is still running
        current = (frames - self._frames) / passed
        memory_seconds = min((now - self._started) / 2, MAX_MEMORY_SECONDS)
        weight = min(1.0, passed / memory_seconds)
        previous = current if self.frames_per_second is None else self.frames_per_second
        self.frames_per_second = previous + weight * (current - previous)
        self._noted_at, self._frames = now, frames

    def seconds_for(self, frames: int) -> float | None:
        """Return how long `frames` will take; None if it is not known."""
        return frames / self.frames_per_second if self.frames_per_second else None
