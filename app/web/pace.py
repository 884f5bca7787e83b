"""Uploads that come too slowly are cut off: a byte now and then would hold a thread for ever.

A read waits in the kernel for as long as any byte comes before the socket's timeout, so the reading thread
cannot notice by itself. One thread a process watches those that read, and ends the reading side of a socket.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_LOOKS_A_WINDOW = 20  # a slow upload is noticed that much of a window late, at most


@dataclass(frozen=True, slots=True)
class PaceRule:
    """At least `bytes_per_second`, on average over `window_seconds`. 0: any pace will do."""

    bytes_per_second: int
    window_seconds: float

    def window(self, piece_bytes: int) -> tuple[float, int]:
        """Seconds, and bytes that must come in them, where only whole pieces are counted.

        So that a piece almost read does not count against a client, it is taken off; and the window is long
        enough for two at the least.
        """
        seconds = max(self.window_seconds, 2 * piece_bytes / self.bytes_per_second)
        return seconds, int(self.bytes_per_second * seconds) - piece_bytes


class UploadPace:
    """How fast one upload comes. The reader's time elsewhere, at a slow disk, is not the client's."""

    def __init__(
        self, rule: PaceRule, piece_bytes: int, connection: socket.socket, clock: Callable[[], float]
    ) -> None:
        self.rule = rule
        self._window_seconds, self._window_bytes = rule.window(piece_bytes)
        self._connection = connection
        self._clock = clock
        self._lock = threading.Lock()
        self._waited_seconds = 0.0  # since the window began
        self._received_bytes = 0  # since then
        self._reading_since: float | None = None
        self.was_cut = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What this block takes is waiting for the client."""
        with self._lock:
            self._reading_since = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._waited_seconds += self._clock() - self._reading_since
                self._reading_since = None

    def count(self, received_bytes: int) -> None:
        """Tell of a piece that has come."""
        with self._lock:
            self._received_bytes += received_bytes
            if self._received_bytes >= self._window_bytes:
                self._waited_seconds, self._received_bytes = 0.0, 0

    def cut_if_too_slow(self) -> None:
        """End the reading side if the window is over: the read returns as if the client had ended."""
        with self._lock:
            if self._reading_since is None or self.was_cut:
                return
            if self._waited_seconds + self._clock() - self._reading_since > self._window_seconds:
                self.was_cut = True
                with suppress(OSError):  # it is closed already
                    self._connection.shutdown(socket.SHUT_RD)


class PaceKeeper:
    """Watches the uploads that a process receives. Its thread starts with the first of them."""

    def __init__(self, rule: PaceRule, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rule = rule
        self._clock = clock
        self._changed = threading.Condition()
        self._uploads: set[UploadPace] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, connection: socket.socket | None, *, piece_bytes: int) -> Iterator[UploadPace | None]:
        """Yield the pace of an upload that is watched until the block ends.

        None where there is no minimum, or where the server does not show its socket.
        """
        if connection is None or not self.rule.bytes_per_second:
            yield None
            return
        pace = UploadPace(self.rule, piece_bytes, connection, self._clock)
        with self._changed:
            self._uploads.add(pace)
            self._ensure_thread()
            self._changed.notify_all()
        try:
            yield pace
        finally:
            with self._changed:  # from here on the connection is another request's, and is not cut
                self._uploads.discard(pace)

    def look(self) -> None:
        """Cut off every upload that is too slow now."""
        with self._changed:
            for pace in self._uploads:
                pace.cut_if_too_slow()

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="upload-pace", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause_seconds = self.rule.window_seconds / _LOOKS_A_WINDOW
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._uploads)
                self._changed.wait(pause_seconds)
            self.look()
