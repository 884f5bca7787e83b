"""The trial of a model as the engine sees it: a process with a deadline and a limit to its memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import structlog

from app.detection.model_facts import Verdict
from app.engine.host_process import own_bytes
from app.host.messages import TrialBegun, TrialEnded, TrialPlan, TrialTooLarge
from app.video.results import Cancelled, WorkCancelled

POLL_SECONDS = 0.1
END_SECONDS = 5.0  # for a process to end that has closed its end of the socket
LAST_WORDS_BYTES = 4096  # of what a process wrote to standard error

# What native code writes before it ends its process for lack of memory.
_SIGNS_OF_LACK_OF_MEMORY = ("memory allocation of", "bad_alloc", "annot allocate memory", "out of memory")

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
    with tempfile.TemporaryFile("ab+") as words, Connection(ours.detach()) as channel:
        with theirs:
            process = spawn(theirs.fileno(), words.fileno())
        try:
            return _listen(channel, process, plan, time.monotonic() + seconds, cancelled)
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()  # it has closed its end of the socket, but runs on
            status = process.wait()
            words.seek(max(0, words.tell() - LAST_WORDS_BYTES))
            lines = words.read().decode(errors="replace").split("\n")
            last_words = next((line.strip() for line in reversed(lines) if line.strip()), "")
            _log.warning("a model's trial crashed", model=plan.model, exit_status=status, stderr=lines[-20:])
            if any(sign in line for sign in _SIGNS_OF_LACK_OF_MEMORY for line in lines):
                raise TrialLacksMemory from None
            how = f"exit status {status}"
            if status < 0:
                how = f"signal {-status} ({signal.Signals(-status).name})"
            raise TrialCrashed(f"{how}: {last_words[:200]}" if last_words else how) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listen(
    channel: Connection,
    process: subprocess.Popen[bytes],
    plan: TrialPlan,
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
        if not channel.poll(POLL_SECONDS):
            continue
        match channel.recv():
            case TrialBegun(own_bytes=own) if plan.host.device != "cpu":
                limit_bytes = plan.room_bytes + own
            case TrialEnded(verdict=verdict):
                return verdict
            case TrialTooLarge() as needed:
                raise TrialLacksMemory(needed)
