"""Locks (flock) on files and folders. The kernel drops a lock when the process that holds it dies.

A lock on a folder says who uses it: a folder whose lock is free belongs to no process. A later request may
take an upload over from the one that holds its lock: it sets the time stamp of a file in the folder. The
holder may be waiting for bytes that never come, so one thread of its process watches the time stamps of all
that it holds (`TakeoverWatcher`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.storage.descriptors import opened

_RETRY_SECONDS = 0.02  # between two tries to get a lock
_LOOK_SECONDS = 0.05  # between two looks at the time stamps; each costs microseconds


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock the open file; false if another holds its lock. The lock lasts until the file is closed."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held_folder(
    folder: Path, *, deadline: float, on_retry: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Hold the lock of `folder`; yield false if that was not possible before `deadline`.

    `deadline` is in monotonic seconds. Raises FileNotFoundError, also if the folder was moved or removed.
    """
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        while not (is_held := try_lock(descriptor)) and time.monotonic() < deadline:
            on_retry()
            time.sleep(_RETRY_SECONDS)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(folder.name)
        yield is_held


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its lock until the block ends, even if the block renames it."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # a clean-up was faster
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_unheld(folder: Path, *, is_leftover: Callable[[], bool] = lambda: True) -> bool:
    """Remove `folder` if no process holds its lock and `is_leftover` says so; return whether it was removed.

    `is_leftover` is called while no other process can take the lock.
    """
    with suppress(FileNotFoundError), held_folder(folder, deadline=0) as is_held:
        if is_held and is_leftover():
            shutil.rmtree(folder)
            return True
    return False


@dataclass(eq=False, slots=True)
class _Watched:
    call: Path
    seen_ns: int  # the time stamp so far
    on_takeover: Callable[[], None]
    was_called: bool = False


class TakeoverWatcher:
    """Notifies this process's lock holders of takeovers. The thread starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._watched: set[_Watched] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, call: Path, on_takeover: Callable[[], None]) -> Iterator[None]:
        """Until the block ends, call `on_takeover` in another thread, once, if the file `call` is touched.

        `on_takeover` must not wait. The block must not change the file itself.
        """
        watched = _Watched(call, call.stat().st_mtime_ns, on_takeover)
        with self._lock:
            self._watched.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="takeover-watcher", daemon=True)
                self._thread.start()
            self._lock.notify_all()
        try:
            yield
        finally:
            with self._lock:
                self._watched.discard(watched)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._watched)
                for watched in self._watched:
                    with suppress(FileNotFoundError):
                        if not watched.was_called and watched.call.stat().st_mtime_ns != watched.seen_ns:
                            watched.was_called = True
                            watched.on_takeover()
            time.sleep(_LOOK_SECONDS)
