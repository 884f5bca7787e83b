"""Processes that leave nothing behind: they end with their parent, and find what an earlier start left."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
_KILL_SECONDS = 10.0  # a killed process is gone within this, or something is wrong with the machine


class LockHeld(Exception):
    """Somebody else holds the lock, and this process may not or cannot end them."""


def die_with_parent(signal_number: signal.Signals) -> None:
    """Have the kernel send this process `signal_number` when its parent ends, however it ends.

    Survives exec, not fork. The parent is the *thread* that started this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def take_lock(lock: Path) -> int:
    """Return a descriptor that holds `lock` exclusively. LockHeld if another process does.

    The lock lasts as long as one process has the descriptor open; it is closed on exec unless made
    inheritable.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LockHeld(f"{lock.name} is held by another process") from error
    return descriptor


def take_over_lock(lock: Path, *, patience_seconds: float) -> int:
    """Return a descriptor that holds `lock`, after ending whoever else has it open.

    They are what an earlier start left, such as nginx workers whose master was killed: they still have
    its port, and the lock that they inherited from it. They get `patience_seconds` to end by themselves.
    LockHeld if the lock is not free then, because its holder belongs to another user.
    """
    try:
        return take_lock(lock)
    except LockHeld:
        deadline = time.monotonic() + patience_seconds
        for pid in list(_who_has_open(lock)):
            _end(pid, deadline)
        return take_lock(lock)


def _who_has_open(path: Path) -> Iterator[int]:
    """The ids of the other processes that have `path` open, as far as this user may see."""
    wanted = path.stat()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _has_open(process, wanted):
            yield int(process.name)


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    try:
        return any(_is_same(link, wanted) for link in (process / "fd").iterdir())
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False


def _is_same(link: Path, wanted: os.stat_result) -> bool:
    try:
        found = link.stat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _end(pid: int, deadline: float) -> None:
    """Wait until the process has ended; kill it at `deadline` (monotonic seconds)."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _has_ended(process, deadline - time.monotonic()):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            _has_ended(process, _KILL_SECONDS)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        os.close(process)


def _has_ended(process: int, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_seconds) * 1000))
