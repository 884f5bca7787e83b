"""The trial of a model as the engine sees it: a process with a deadline and a limit to its memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Self

import structlog

from app.detection.model_facts import Verdict
from app.engine.host_process import own_bytes
from app.host.messages import TrialBegun, TrialEnded, TrialPlan, TrialTooLarge
from app.video.results import Cancelled, WorkCancelled

POLL_SECONDS = 0.1
END_SECONDS = 5.0  # for a process to end that has closed its end of the socket, or was killed
PIPE_BYTES = 1 << 16  # that a pipe holds
LAST_WORDS_BYTES = 4096  # of what a process wrote to standard error

# What native code writes before it ends its process for lack of memory.
_SIGNS_OF_LACK_OF_MEMORY = (
    "memory allocation of",
    "bad_alloc",
    "annot allocate memory",
    "out of memory",
    "Thread creation failed",  # libgomp
    "can't start new thread",
)

SpawnTrial = Callable[[int, int], "subprocess.Popen[bytes]"]  # descriptors: its end of the socket, its stderr

_log = structlog.get_logger(__name__)


class TrialTooLate(Exception):
    """A trial did not end before its deadline."""


class TrialCrashed(Exception):
    """The process of a trial ended; the text says how."""


class TrialLacksMemory(Exception):
    """A model needs more memory than its trial had."""

    def __init__(self, needed: TrialTooLarge | None = None) -> None:
        super().__init__(needed)
        self.needed = needed  # None: not known


def run_trial(spawn: SpawnTrial, plan: TrialPlan, *, seconds: float, cancelled: Cancelled) -> Verdict:
    """Try a model in a process of its own; it and its children have ended when this returns.

    Raises TrialTooLate, TrialCrashed, TrialLacksMemory and WorkCancelled.
    """
    ours, theirs = socket.socketpair()
    with _LastWords() as words, Connection(ours.detach()) as channel:
        with theirs:
            process = words.pass_to(partial(spawn, theirs.fileno()))
        try:
            return _listen(channel, process, plan, words, time.monotonic() + seconds, cancelled)
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            status = _end(process)  # it has closed its end of the socket, and may run on
            words.read()
            lines = words.text.split("\n")
            last_words = next((line.strip() for line in reversed(lines) if line.strip()), "")
            _log.warning("a model's trial crashed", model=plan.model, exit_status=status, stderr=lines[-20:])
            if any(sign in line for sign in _SIGNS_OF_LACK_OF_MEMORY for line in lines):
                raise TrialLacksMemory from None
            how = f"exit status {status}"
            if status is not None and status < 0:
                how = f"signal {-status} ({signal.strsignal(-status)})"
            raise TrialCrashed(f"{how}: {last_words[:200]}" if last_words else how) from None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> int | None:
    """Kill a process with its group, and return its exit status; None if the kernel does not let it end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(END_SECONDS)
    _log.error("the process of a trial does not end", pid=process.pid)
    return None


class _LastWords:
    """The end of what a process writes to standard error: a pipe, of which the rest is forgotten."""

    def __init__(self) -> None:
        self._kept = b""
        self.source, self._sink = os.pipe()
        os.set_blocking(self.source, False)
        self.is_open = True  # some process may write more

    def pass_to(self, spawn: Callable[[int], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Start a process with the pipe as its standard error."""
        try:
            return spawn(self._sink)
        finally:
            os.close(self._sink)

    def read(self) -> None:
        """Take what has been written, up to what a pipe holds."""
        with suppress(BlockingIOError):
            new = os.read(self.source, PIPE_BYTES)
            self.is_open = bool(new)
            self._kept = (self._kept + new)[-LAST_WORDS_BYTES:]

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.source)


def _listen(
    channel: Connection,
    process: subprocess.Popen[bytes],
    plan: TrialPlan,
    words: _LastWords,
    deadline: float,
    cancelled: Cancelled,
) -> Verdict:
    """Return the verdict of the trial. Raises EOFError or OSError if its process ends before."""
    channel.send(plan)
    limit_bytes = plan.room_bytes if plan.host.device == "cpu" else None  # CUDA's part is not known yet
    while True:
        if cancelled():
            raise WorkCancelled
        if time.monotonic() >= deadline:
            raise TrialTooLate
        if (
            limit_bytes is not None and own_bytes(process.pid) > limit_bytes
        ):  # it can have memory that RLIMIT_DATA does not count
            raise TrialLacksMemory
        ready = wait([channel, words.source] if words.is_open else [channel], POLL_SECONDS)
        if words.source in ready:
            words.read()
        if channel not in ready:
            continue
        match channel.recv():
            case TrialBegun(own_bytes=own) if plan.host.device != "cpu":
                limit_bytes = plan.room_bytes + own
            case TrialEnded(verdict=verdict):
                return verdict
            case TrialTooLarge() as needed:
                raise TrialLacksMemory(needed)
