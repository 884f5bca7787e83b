"""One host, seen from the engine: started, spoken to, watched, and ended for sure, with its children."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from app.host.messages import Heartbeat, HostPlan, HostReady, HostUnusable, Stop

SILENT_SECONDS = 30.0  # a host that says nothing for so long holds its interpreter for ever
STOPPED_SECONDS = 5.0  # … or is stopped, as by SIGSTOP
START_SECONDS = 300.0  # CUDA on a cold machine takes its time
END_SECONDS = 10.0  # a killed process is gone within this, or something is wrong with the machine

Spawn = Callable[[int], "subprocess.Popen[bytes]"]  # takes the descriptor of the host's end of the socket

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What is too much of a host."""

    call_seconds: float  # a model that stays in one batch for longer hangs
    load_seconds: float  # … or that loads for longer
    memory_bytes: int  # of its own


def fault_of(beat: Heartbeat, silent_seconds: float, limits: HostLimits) -> str | None:
    """Why a host that last said `beat`, so long ago, has to be ended; None if all is well.

    A model may keep the interpreter to itself: then its host is silent for as long as the model may take.
    """
    if beat.device_fault is not None:
        return "device lost"
    if beat.call_seconds and beat.call_seconds + silent_seconds > limits.call_seconds:
        return "model hangs"
    if beat.loading_seconds and beat.loading_seconds + silent_seconds > limits.load_seconds:
        return "model hangs while it loads"
    is_busy = beat.call_seconds or beat.loading_seconds
    return None if is_busy or silent_seconds <= SILENT_SECONDS else "host does not answer"


class HostProcess:
    """A host process and the socket to it. `is_gone`, `send` and `close` may be called by any thread.

    `on_message` is called with whatever the host says, in a thread of this object's, and with None once it
    will say no more.
    """

    def __init__(
        self, plan: HostPlan, spawn: Spawn, on_message: Callable[[HostProcess, object], None]
    ) -> None:
        self._on_message = on_message
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._is_closed = False
        self.ready: HostReady | None = None
        self.unusable: str | None = None
        self.heartbeat: Heartbeat | None = None
        self._last_sign = time.monotonic()
        self._socket, theirs = socket.socketpair()
        self._channel = Connection(os.dup(self._socket.fileno()))
        with theirs:
            self._process = spawn(theirs.fileno())
        self.pid = self._process.pid
        self._threads = [
            threading.Thread(target=self._receive, name=f"from-host-{self.pid}", daemon=True),
            threading.Thread(target=self._send_all, name=f"to-host-{self.pid}", daemon=True),
        ]
        self.send(plan)

    def start(self) -> None:
        """Begin to speak and to listen."""
        for thread in self._threads:
            thread.start()

    def send(self, message: object) -> None:
        """Queue a message; one to a host that is gone is lost."""
        self._outbox.put(message)

    def stop(self) -> None:
        """Ask the host to end in good order."""
        self.send(Stop())

    def fault(self, limits: HostLimits) -> str | None:
        """Why this host has to be ended, as a constant text; None if all is well."""
        silent_seconds = time.monotonic() - self._last_sign
        beat = self.heartbeat
        if self.ready is None or beat is None:
            return "host does not start" if silent_seconds > START_SECONDS else None
        if self.own_bytes() > self._allowed_bytes(limits):
            return "host takes too much memory"
        if silent_seconds > STOPPED_SECONDS and self._is_stopped():
            return "host does not answer"
        return fault_of(beat, silent_seconds, limits)

    def own_bytes(self) -> int:
        """Memory of the host's own, its children apart; 0 once it is gone."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")

    def _is_stopped(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return status.rpartition(")")[2].split()[0] == "T"

    def kill(self) -> None:
        """End the host and its children, which are a process group; twice is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left, and return when it is gone. Twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._outbox.put(None)
        self._socket.shutdown(socket.SHUT_RDWR)  # whoever may still have the other end open
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(END_SECONDS)
        self._channel.close()
        self._socket.close()

    def wait_for_end(self, seconds: float) -> None:
        """Return when the host has ended, or after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def exit_status(self) -> int | None:
        """As `subprocess.Popen.returncode`: negative for a signal; None while it runs."""
        return self._process.poll()

    def _allowed_bytes(self, limits: HostLimits) -> int:
        """What CUDA takes of the host comes on top: gigabytes, which no model's end gives back."""
        assert self.ready is not None  # noqa: S101 - looked at before
        return limits.memory_bytes + (0 if self.ready.device == "cpu" else self.ready.own_bytes)

    def _receive(self) -> None:
        try:
            while True:
                message = self._channel.recv()
                self._last_sign = time.monotonic()
                match message:
                    case HostReady():
                        self.ready = message
                    case HostUnusable():
                        self.unusable = message.detail
                    case Heartbeat():
                        self.heartbeat = message
                self._on_message(self, message)
        except (EOFError, OSError):
            self._on_message(self, None)

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):  # it is gone: the other thread notices
            while (message := self._outbox.get()) is not None:
                self._channel.send(message)
