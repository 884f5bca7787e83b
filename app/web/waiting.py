"""What a request waits for, its client or its job's end, and how long that takes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import IO

from app.jobs.job import Job
from app.jobs.watcher import JobWatcher

_ABANDONED_CHECK_SECONDS = 1.0  # how often a waiting request checks whether its client is still there


@contextmanager
def slot_of(slots: threading.BoundedSemaphore) -> Iterator[bool]:
    """Hold one of `slots` until the block ends; yield False if none is free.

    They limit how many requests of a process wait: each holds a thread, and some must stay free.
    """
    has_slot = slots.acquire(blocking=False)
    try:
        yield has_slot
    finally:
        if has_slot:
            slots.release()


def wait_for_end(
    watcher: JobWatcher, job: Job, *, seconds: float | None, is_abandoned: Callable[[], bool]
) -> Job:
    """Return the job once it has ended, `seconds` have passed (None: no limit), or `is_abandoned()`.

    Raises JobNotFound if it is deleted meanwhile.
    """
    deadline = float("inf") if seconds is None else time.monotonic() + seconds
    with watcher.watch(job.id, owner=job.owner) as watch:
        while not job.state.is_final:
            left = deadline - time.monotonic()
            if left <= 0 or is_abandoned():
                break
            job = watch.next_change(min(left, _ABANDONED_CHECK_SECONDS)) or job
    return job


def client_is_gone(connection: socket.socket | None) -> bool:
    """Whether the peer has closed `connection`; False if the server does not expose its socket."""
    if connection is None:
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


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
