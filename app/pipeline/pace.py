"""How fast jobs go, and how long they will take at that pace."""

from __future__ import annotations

import threading
from collections import Counter

MAX_MEMORY_SECONDS = 120.0  # a pace of longer ago counts little: other jobs have come or gone since
PATIENCE_SECONDS = 10.0  # a job that shows no frame for so long stands still


class FrameMeter:
    """Counts the frames that segments under way have dealt with, by job. Safe to use from many threads."""

    def __init__(self) -> None:
        self._frames: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, job_id: str, frames: int) -> None:
        with self._lock:
            self._frames[job_id] += frames

    def of(self, job_id: str) -> int:
        """Frames since `forget`, those of unfinished segments too."""
        with self._lock:
            return self._frames[job_id]

    def forget(self, job_id: str) -> None:
        with self._lock:
            del self._frames[job_id]


class Pace:
    """A job's frames a second, the last ones counting most. Not shared between threads.

    A mean whose memory is half the time since the first frame: so the start, when nothing flows yet, is soon
    forgotten, and later a batch more or less does not show.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._noted_at = 0.0
        self._frames = 0
        self.frames_per_second: float | None = None  # None: not known yet

    def note(self, frames: int, now: float) -> None:
        """Say that `frames` are done at `now`, seconds of a clock that never goes back."""
        if self._started is None:
            if frames:
                self._started, self._noted_at, self._frames = now, now, frames
            return
        passed = now - self._noted_at
        if passed <= 0 or (frames == self._frames and passed < PATIENCE_SECONDS):
            return  # frames come in batches, and this one is under way
        current = (frames - self._frames) / passed
        memory_seconds = min((now - self._started) / 2, MAX_MEMORY_SECONDS)
        weight = min(1.0, passed / memory_seconds)
        previous = current if self.frames_per_second is None else self.frames_per_second
        self.frames_per_second = previous + weight * (current - previous)
        self._noted_at, self._frames = now, frames

    def seconds_for(self, frames: int) -> float | None:
        """How long `frames` will take; None if nobody can tell."""
        return frames / self.frames_per_second if self.frames_per_second else None
