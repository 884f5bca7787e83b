"""Programs of one data folder wake each other, so that none has to look again and again for news.

Each program has an empty file in ``run/wakeups/``. Who has news for a program opens that file, and the kernel
(inotify) wakes every process that listens there. Unix sockets would do too, but each listener needs a name of
its own, killed ones leave theirs behind, and the path may be too long. A file has none of that: opening it
writes nothing, costs microseconds and never waits; any number of wake-ups that nobody took yet is one; and it
works across containers, since the kernel watches the file and not its name.

A wake-up holds no news: these are in the database. One that is lost delays them until the listener's timeout.
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

UNTOLD_SECONDS = 0.05  # a listener that the kernel cannot wake looks that often

_IN_OPEN = 0x20  # inotify(7)
_READ_BYTES = 4096  # of events, each 16 bytes; equal ones in a row are one

_log = structlog.get_logger(__name__)


class Program(StrEnum):
    """Who can be woken."""

    ENGINE = "engine"
    WEB = "web"  # every HTTP worker
    COURIER = "courier"


class Wakeups:
    """Wakes the programs of one data folder. `folder` need not exist yet. Any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wake(self, *programs: Program) -> None:
        """Wake all processes that listen for one of `programs`. Never waits, never fails."""
        for program in programs:
            with suppress(OSError):  # mostly there is no such file: nobody has listened yet
                os.close(os.open(self._folder / program, os.O_RDONLY | os.O_CLOEXEC))

    def listen(self, program: Program) -> Listener:
        """Return a listener that is woken as `program`; close it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in Program:  # the first listener makes all files: what lies in the folder depends on nothing
            (self._folder / each).touch(mode=0o600)  # one that is there is not opened: that would wake
        return Listener(_watch(self._folder / program))


class Listener:
    """Waits for wake-ups. One thread waits; any thread, or a signal's handler, may interrupt it."""

    def __init__(self, watched: int | None) -> None:
        """`watched` is an inotify descriptor, now the listener's; None if there is none to be had."""
        self._watched = watched
        self._own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closed = False
        self._poll = select.poll()
        for descriptor in self._descriptors():
            self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_seconds: float) -> bool:
        """Return once somebody woke or interrupted this listener since the last call, or time ran out.

        False if time ran out. Look for news in either case.
        """
        if self._watched is None:
            timeout_seconds = min(timeout_seconds, UNTOLD_SECONDS)
        woken = [descriptor for descriptor, _ in self._poll.poll(timeout_seconds * 1000)]
        for descriptor in woken:
            with suppress(BlockingIOError):
                os.read(descriptor, _READ_BYTES)
        return bool(woken)

    def interrupt(self) -> None:
        """End the wait that goes on, or else the next one. Safe in a signal, and once it is closed."""
        if not self._is_closed:
            os.eventfd_write(self._own, 1)

    def close(self) -> None:
        """Listen no more; nothing is left of it."""
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
    """An inotify descriptor that tells when `file` is opened; None where this user may have no more."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(file), _IN_OPEN) >= 0:
        return descriptor
    reason = os.strerror(ctypes.get_errno())
    if descriptor >= 0:
        os.close(descriptor)
    _log.warning("cannot be woken; looks for news instead", reason=reason, every_seconds=UNTOLD_SECONDS)
    return None
