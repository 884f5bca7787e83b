"""One writer at a time, across processes; who comes later has the one before stop.

A writer holds a lock (flock) on a folder, which the kernel drops when its process dies. Who wants the lock
rings: it sets the time stamp of a file in the folder, the bell. The holder's process looks at the bells of
all locks that it holds in one thread, because the holder itself may be waiting for bytes that never come.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TRY_SECONDS = 0.02  # between two tries to get a lock
_LOOK_SECONDS = 0.05  # between two looks at the bells; each costs microseconds


def take_folder(folder: Path, bell: Path, *, seconds: float) -> int:
    """Return a descriptor that holds the lock of `folder` until it is closed; rings at `bell` meanwhile.

    Raises FileNotFoundError if the folder is gone, TimeoutError if its holder did not stop in `seconds`.
    """
    deadline = time.monotonic() + seconds
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, bell, deadline)
        _check_same(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, bell: Path, deadline: float) -> None:
    while not _try_lock(descriptor):
        if time.monotonic() >= deadline:
            raise TimeoutError("the lock's holder did not stop")
        with suppress(FileNotFoundError):
            os.utime(bell)
        time.sleep(_TRY_SECONDS)


def _check_same(descriptor: int, folder: Path) -> None:
    """The lock counts for the folder that was opened, which may have been removed since."""
    if not os.path.samestat(os.fstat(descriptor), folder.stat()):
        raise FileNotFoundError(folder.name)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(eq=False, slots=True)
class _Watched:
    bell: Path
    rung_at: int  # nanoseconds: the time stamp that was there before
    on_ring: Callable[[], None]
    was_told: bool = False


class BellWatcher:
    """Tells the holders of one process that somebody rings. The thread starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._watched: set[_Watched] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, bell: Path, on_ring: Callable[[], None]) -> Iterator[None]:
        """Until the block ends, call `on_ring`, once and in another thread, if somebody rings at `bell`.

        `on_ring` must not wait. The block must not change the bell itself.
        """
        watched = _Watched(bell, bell.stat().st_mtime_ns, on_ring)
        with self._lock:
            self._watched.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bell-watcher", daemon=True)
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
                    _tell(watched)
            time.sleep(_LOOK_SECONDS)


def _tell(watched: _Watched) -> None:
    if watched.was_told:
        return
    with suppress(FileNotFoundError):
        if watched.bell.stat().st_mtime_ns != watched.rung_at:
            watched.was_told = True
            watched.on_ring()
