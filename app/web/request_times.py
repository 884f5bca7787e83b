"""Measure what a request's time was spent on: serving it, or waiting for its client or its job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import IO


class Wait(StrEnum):
    """What a request waits for while the service has nothing to do for it."""

    BODY = "body"  # bytes from the client
    JOB = "job"  # its job's end


class RequestTimes:
    """The clock of one request, started when it arrives. Not shared between threads."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.waits: dict[Wait, float] = {}  # seconds of each kind so far

    @property
    def total_seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def serving_seconds(self) -> float:
        return max(0.0, self.total_seconds - sum(self.waits.values()))

    @contextmanager
    def waiting(self, wait: Wait) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waits[wait] = self.waits.get(wait, 0.0) + time.perf_counter() - started


class TimedBody:
    """A request's ``wsgi.input`` whose reads count as waiting for the client."""

    def __init__(self, body: IO[bytes], times: RequestTimes) -> None:
        self._body = body
        self._times = times

    def read(self, size: int = -1) -> bytes:
        with self._times.waiting(Wait.BODY):
            return self._body.read(size)

    def readline(self, size: int = -1) -> bytes:
        with self._times.waiting(Wait.BODY):
            return self._body.readline(size)
