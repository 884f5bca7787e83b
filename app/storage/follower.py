"""Follows the bodies that nginx writes: hashes them from the page cache and starts their write-back.

So a video of 100 GB is never read only for its digest, and little is left to do after its last byte.

One thread of one HTTP worker follows. A lock decides which; if it dies, another takes over. Beside each
followed body is a note, ``<digits>.sha256``, which is locked until the digest is in it. A request that takes
a body opens the note first, moves the body away, which shows the follower that it is whole, and waits for the
lock. A missing note, or an unlocked one without the body's digest, means that the request must hash it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from app.storage.bodies import BodyFolders, note_of, note_text
from app.storage.descriptors import opened, start_write_back
from app.storage.locks import try_lock

LOOK_SECONDS = 0.2  # between two looks for new bodies
FOLLOW_SECONDS = 0.02  # between two looks at those that are followed, where there was nothing new
CLEAN_SECONDS = 60.0
STAND_BY_SECONDS = 1.0
_READ_BYTES = 1024 * 1024
_TURN_BYTES = 32 * _READ_BYTES  # of one body, before the next one's turn
_WRITE_BACK_BYTES = 64 * 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Followed:
    path: Path
    descriptor: int
    note: int
    files: ExitStack  # closes both
    offset: int = 0
    written_back: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def close(self) -> None:
        """Remove the note and its lock. A request that has the note open can still read it."""
        note_of(self.path).unlink(missing_ok=True)
        self.files.close()


class BodyFollower:
    """Hashes growing bodies. `folders` returns the names of the folders in which there may be some."""

    def __init__(self, bodies: BodyFolders, folders: Callable[[], Iterable[str]], lock: Path) -> None:
        self._bodies = bodies
        self._folders = folders
        self._lock = lock
        self._followed: dict[Path, _Followed] = {}
        self._stop = threading.Event()
        self._next_look = 0.0  # monotonic seconds
        self._next_cleaning = 0.0
        self._buffer = bytearray(_READ_BYTES)

    def start(self) -> threading.Thread:
        """Follow until `stop` or the end of the process; stand by while another process's follower works."""
        thread = threading.Thread(target=self._run, name="body-follower", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()

    def look(self) -> None:
        """Follow the bodies that are new."""
        for path in self._present(self._folders()) - self._followed.keys():
            # Its request may just have ended, or there is no room for a note.
            with ExitStack() as files, suppress(OSError):
                descriptor = files.enter_context(opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
                note = files.enter_context(opened(note_of(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
                if try_lock(note):  # otherwise a request waits for it, and will hash the body itself
                    os.ftruncate(note, 0)  # of a follower that died
                    self._followed[path] = _Followed(path, descriptor, note, files.pop_all())

    def step(self) -> bool:
        """Hash some of each followed body; false if there was nothing new.

        The digest of a body that was taken is recorded; one that is gone with its client needs none.
        """
        present = self._present({path.parent.name for path in self._followed})
        advanced = [self._advance(body) for body in list(self._followed.values())]
        for path in self._followed.keys() - present:
            body = self._followed.pop(path)
            with closing(body):
                if os.fstat(body.descriptor).st_nlink:
                    while self._advance(body):
                        pass
                    os.pwrite(body.note, note_text(os.fstat(body.descriptor), body.offset, body.digest), 0)
        return any(advanced)

    def _run(self) -> None:
        with opened(self._lock, os.O_RDWR | os.O_CREAT) as lock:
            while not try_lock(lock) and not self._stop.wait(STAND_BY_SECONDS):
                pass
            while not self._stop.is_set():
                try:
                    now = time.monotonic()
                    if now >= self._next_look:
                        self._next_look = now + LOOK_SECONDS
                        self.look()
                    if now >= self._next_cleaning:
                        self._next_cleaning = now + CLEAN_SECONDS
                        self._bodies.remove_leftovers()
                    if not self.step():
                        self._stop.wait(FOLLOW_SECONDS if self._followed else LOOK_SECONDS)
                except Exception:  # noqa: BLE001 - the thread's boundary: without it, bodies are read again
                    _log.exception("bodies are not followed for a while")
                    self._forget_all()
                    self._stop.wait(STAND_BY_SECONDS)
            self._forget_all()

    def _present(self, names: Iterable[str]) -> set[Path]:
        return {path for name in names for path in self._bodies.paths(name)}

    def _advance(self, body: _Followed, limit_bytes: int = _TURN_BYTES) -> bool:
        began = body.offset
        while body.offset - began < limit_bytes:
            count = os.preadv(body.descriptor, [self._buffer], body.offset)
            if not count:
                break
            body.digest.update(memoryview(self._buffer)[:count])
            body.offset += count
        if body.offset - body.written_back >= _WRITE_BACK_BYTES:
            start_write_back(body.descriptor, body.written_back, body.offset - body.written_back)
            body.written_back = body.offset
        return body.offset > began

    def _forget_all(self) -> None:
        while self._followed:
            with suppress(OSError):
                self._followed.popitem()[1].close()
