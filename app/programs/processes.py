"""Processes that leave nothing behind: they end with their parent, and end what an earlier start left."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.libc import LIBC, checked
from app.storage.locks import try_lock

_PR_SET_PDEATHSIG = 1  # prctl(2)
_KILL_SECONDS = 10.0  # a killed process is gone within this, or something is wrong with the machine


class LockHeld(Exception):
    """Another process holds the lock, and this one may not or cannot end it."""


def die_with_parent(signal_number: signal.Signals) -> None:
    """Have the kernel send this process `signal_number` when its parent ends, however it ends.

    Survives exec, not fork. The parent is the *thread* that started this process.
    """
    checked(LIBC.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0))


def take_lock(lock: Path) -> int:
    """Return a descriptor that holds `lock` exclusively. LockHeld if another process does.

    The lock lasts as long as a process has the descriptor open. It is closed on exec unless made inheritable.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_lock(descriptor):
        os.close(descriptor)
        raise LockHeld(f"{lock.name} is held by another process")
    return descriptor


def take_over_lock(lock: Path, *, grace_seconds: float) -> int:
    """Return a descriptor that holds `lock`, after ending every other process that has it open.

    Those are left over from an earlier start, such as nginx workers whose master was killed: they still have
    its port, and the lock that they inherited from it. They get `grace_seconds` to end by themselves.
    LockHeld if the lock is still held then, because its holder belongs to another user.
    """
    try:
        return take_lock(lock)
    except LockHeld:
        deadline = time.monotonic() + grace_seconds
        for pid in list(_holders(lock)):
            _end(pid, deadline)
        return take_lock(lock)


def _holders(path: Path) -> Iterator[int]:
    """Yield the ids of the other processes that have `path` open, as far as this user may see."""
    wanted = path.stat()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            for link in (process / "fd").iterdir():
                with suppress(FileNotFoundError):
                    if os.path.samestat(link.stat(), wanted):
                        yield int(process.name)
                        break


def _end(pid: int, deadline: float) -> None:
    """Wait until the process has ended; kill it at `deadline` (monotonic seconds)."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(process, select.POLLIN)
    try:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            poll.poll(_KILL_SECONDS * 1000)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        os.close(process)
