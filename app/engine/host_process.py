"""One host as the engine sees it: started, sent messages, watched, and ended with its children."""

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

from app.host.messages import Heartbeat, HostPlan, HostReady, HostUnusable

HOST_SILENT_SECONDS = 30.0  # a host that sends nothing for this long holds its interpreter lock forever
STOPPED_SECONDS = 5.0  # … or is stopped, as by SIGSTOP
START_SECONDS = 300.0  # CUDA takes its time on a cold machine
END_SECONDS = 10.0  # a killed process is gone within this, or something is wrong with the machine

Spawn = Callable[[int], "subprocess.Popen[bytes]"]  # takes the descriptor of the host's end of the socket

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HostLimits:
    """A host that exceeds one of these is replaced."""

    call_seconds: float  # for one batch in a model
    load_seconds: float  # for loading one model
    memory_bytes: int  # of its own; what CUDA took of it at the start is added


def fault_of(beat: Heartbeat, silent_seconds: float, limits: HostLimits) -> str | None:
    """Return why a host must be ended whose last heartbeat is `beat`; None if nothing is wrong.

    A model may hold the interpreter lock. Its host then cannot answer for as long as the model may take.
    """
    if beat.device_fault is not None:
        return "device lost"
    if beat.call_seconds and beat.call_seconds + silent_seconds > limits.call_seconds:
        return "model hangs"
    if beat.loading_seconds and beat.loading_seconds + silent_seconds > limits.load_seconds:
        return "model hangs while it loads"
    is_busy = beat.call_seconds or beat.loading_seconds
    return None if is_busy or silent_seconds <= HOST_SILENT_SECONDS else "host does not answer"


def own_bytes(pid: int) -> int:
    """Return the memory of a process itself, without its children; 0 once it has ended."""
    pages = _read_proc(pid, "statm").split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _read_proc(pid: int, name: str) -> str:
    """Return a file of a process in /proc; an empty text once the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class HostProcess:
    """A host process and the socket to it. Thread-safe.

    `on_message` is called with every message of the host, in a thread of this object, and at last with None.
    """

    def __init__(
        self, plan: HostPlan, spawn: Spawn, on_message: Callable[[HostProcess, object], None]
    ) -> None:
        self._on_message = on_message
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._is_closed = False
        self.ready: HostReady | None = None
        self.unusable: str | None = None
        self.heartbeat = Heartbeat()
        self._heard_at = time.monotonic()
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
        """Start sending and receiving."""
        for thread in self._threads:
            thread.start()

    def send(self, message: object) -> None:
        """Queue a message. If the host has ended, the message is lost."""
        self._outbox.put(message)

    def fault(self, limits: HostLimits) -> str | None:
        """Return why this host must be ended, as a constant text; None if nothing is wrong."""
        silent_seconds = time.monotonic() - self._heard_at
        if self.ready is None:
            return "host does not start" if silent_seconds > START_SECONDS else None
        # CUDA takes gigabytes of the host's memory, which no model gives back when it is unloaded.
        cuda_bytes = 0 if self.ready.device == "cpu" else self.ready.own_bytes
        if own_bytes(self.pid) > limits.memory_bytes + cuda_bytes:
            return "host takes too much memory"
        if silent_seconds > STOPPED_SECONDS:
            status = _read_proc(self.pid, "stat")
            if status and status.rpartition(")")[2].split()[0] == "T":
                return "host does not answer"
        return fault_of(self.heartbeat, silent_seconds, limits)

    def exit_status(self) -> int | None:
        """Return what `subprocess.Popen.returncode` holds: negative for a signal; None while it runs."""
        return self._process.poll()

    def close(self, *, grace_seconds: float = 0.0) -> None:
        """Let the host end by itself for `grace_seconds`, then kill what is left. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the group that `spawn` gave it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._outbox.put(None)
        self._socket.shutdown(socket.SHUT_RDWR)  # another process may still have the other end open
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(END_SECONDS)
        self._channel.close()
        self._socket.close()

    def _receive(self) -> None:
        try:
            while True:
                message = self._channel.recv()
                self._heard_at = time.monotonic()
                match message:
                    case HostReady():
                        self.ready = message
                    case HostUnusable():
                        self.unusable = message.detail
                        _log.error("host cannot be used", detail=message.detail)
                    case Heartbeat():
                        self.heartbeat = message
                self._on_message(self, message)
        except (EOFError, OSError):
            self._on_message(self, None)

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):  # the host is gone; the other thread reports it
            while (message := self._outbox.get()) is not None:
                self._channel.send(message)
