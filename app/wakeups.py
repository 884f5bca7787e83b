"""Programs of one data folder wake each other, so that none has to poll for changes.

Each program has an empty file in ``run/wakeups/``. To wake a program, open its file: the kernel (inotify)
then wakes every process that listens there. With Unix sockets, each listener would need a name of its own,
killed ones would leave theirs behind, and the path might be too long. Opening a file writes nothing, takes
microseconds and never blocks; any number of pending wake-ups count as one; and it works across containers,
since the kernel watches the file and not its name.

A wake-up carries no data: that is in the database. A lost one costs time until the listener's timeout.
"""

from __future__ import annotations

import ctypes
import os
import select
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Self

import structlog

from app.libc import LIBC

POLL_SECONDS = 0.05  # the longest wait of a listener that the kernel cannot wake

_IN_OPEN = 0x20  # inotify(7)
_READ_BYTES = 4096  # of events, each 16 bytes; equal ones in a row are one

_log = structlog.get_logger(__name__)


class Program(StrEnum):
    """A program that can be woken."""

    ENGINE = "engine"
    WEB = "web"  # every HTTP worker
    COURIER = "courier"


class Wakeups:
    """Wakes the programs of one data folder. `folder` need not exist yet. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wake(self, *programs: Program) -> None:
        """Wake all processes that listen for one of `programs`. Never blocks or fails."""
        for program in programs:
            with suppress(OSError):  # usually there is no such file, because no listener was started yet
                os.close(os.open(self._folder / program, os.O_RDONLY | os.O_CLOEXEC))

    def listen(self, program: Program) -> Listener:
        """Return a listener for `program`. Close it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in Program:  # all of them, so that the folder always has the same contents
            (self._folder / each).touch(mode=0o600)  # which does not open, and so wake, an existing file
        return Listener(_watch(self._folder / program))


class Listener:
    """Waits for wake-ups in one thread. Any thread or signal handler may interrupt it."""

    def __init__(self, watched: int | None) -> None:
        """`watched` is an inotify descriptor, which the listener closes; None if none is available."""
        self._watched = watched
        self._own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closed = False
        self._poll = select.poll()
        for descriptor in self._descriptors():
            self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for a wake-up or an interruption since the last call. Return False if time ran out.

        Check for changes in either case.
        """
        if self._watched is None:
            timeout_seconds = min(timeout_seconds, POLL_SECONDS)
        woken = [descriptor for descriptor, _ in self._poll.poll(timeout_seconds * 1000)]
        for descriptor in woken:
            with suppress(BlockingIOError):
                os.read(descriptor, _READ_BYTES)
        return bool(woken)

    def interrupt(self) -> None:
        """End the current wait, or else the next one. Signal-safe, also after `close`."""
        if not self._is_closed:
            os.eventfd_write(self._own, 1)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            for descriptor in self._descriptors():
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _descriptors(self) -> list[int]:
        return [descriptor for descriptor in (self._watched, self._own) if descriptor is not None]


def _watch(file: Path) -> int | None:
    """Return an inotify descriptor for openings of `file`; None if this user may not have another."""
    descriptor: int = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor >= 0 and LIBC.inotify_add_watch(descriptor, os.fsencode(file), _IN_OPEN) >= 0:
        return descriptor
    reason = os.strerror(ctypes.get_errno())
    if descriptor >= 0:
        os.close(descriptor)
    _log.warning("inotify is not available; polling instead", reason=reason, every_seconds=POLL_SECONDS)
    return None
