"""Cut off uploads that arrive too slowly: one byte now and then would occupy a thread for ever.

A read waits in the kernel as long as some byte arrives before the socket's timeout, so the reading thread
cannot notice by itself. One thread per process watches the readers and shuts down a socket's reading side.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_CHECKS_PER_WINDOW = 20  # a slow upload is noticed at most this fraction of a window late


@dataclass(frozen=True, slots=True)
class PaceRule:
    """At least `bytes_per_second`, on average over `window_seconds`. 0: no minimum."""

    bytes_per_second: int
    window_seconds: float


class UploadPace:
    """The speed of one upload. Time that the reader spends elsewhere, at a slow disk, does not count."""

    def __init__(
        self, rule: PaceRule, piece_bytes: int, connection: socket.socket, clock: Callable[[], float]
    ) -> None:
        self.rule = rule
        # A window is long enough for two pieces. One is subtracted from the bytes that must arrive in it, so
        # that an almost complete one does not count against the client.
        self._window_seconds = max(rule.window_seconds, 2 * piece_bytes / rule.bytes_per_second)
        self._window_bytes = int(rule.bytes_per_second * self._window_seconds) - piece_bytes
        self._connection = connection
        self._clock = clock
        self._lock = threading.Lock()
        self._waited_seconds = 0.0  # since the window began
        self._received_bytes = 0  # since then
        self._reading_since: float | None = None
        self.was_cut = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count the block's time as waiting for the client."""
        with self._lock:
            self._reading_since = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._waited_seconds += self._clock() - self._reading_since
                self._reading_since = None

    def count(self, received_bytes: int) -> None:
        """Count a received piece."""
        with self._lock:
            self._received_bytes += received_bytes
            if self._received_bytes >= self._window_bytes:
                self._waited_seconds, self._received_bytes = 0.0, 0

    def cut_if_too_slow(self) -> None:
        """Shut down the reading side if the window is over: the read returns as if the client had ended."""
        with self._lock:
            if self._reading_since is None or self.was_cut:
                return
            if self._waited_seconds + self._clock() - self._reading_since > self._window_seconds:
                self.was_cut = True
                with suppress(OSError):  # it is closed already
                    self._connection.shutdown(socket.SHUT_RD)


class PaceKeeper:
    """Watches the uploads that a process receives. Its thread starts with the first upload."""

    def __init__(self, rule: PaceRule, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rule = rule
        self._clock = clock
        self._changed = threading.Condition()
        self._uploads: set[UploadPace] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, connection: socket.socket | None, *, piece_bytes: int) -> Iterator[UploadPace | None]:
        """Watch an upload until the block ends, and yield its pace.

        None if there is no minimum, or if the server does not expose its socket.
        """
        if connection is None or not self.rule.bytes_per_second:
            yield None
            return
        pace = UploadPace(self.rule, piece_bytes, connection, self._clock)
        with self._changed:
            self._uploads.add(pace)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upload-pace", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        try:
            yield pace
        finally:
            with self._changed:  # the connection serves another request from here on and must not be cut
                self._uploads.discard(pace)

    def look(self) -> None:
        """Cut off every upload that is too slow now."""
        with self._changed:
            for pace in self._uploads:
                pace.cut_if_too_slow()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._uploads)
                self._changed.wait(self.rule.window_seconds / _CHECKS_PER_WINDOW)
            self.look()
