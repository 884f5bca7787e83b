"""Waiting for a job's end on behalf of a client that may go away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
