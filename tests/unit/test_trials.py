"""A model's trial as the engine runs it. The processes are real; most follow a script instead of a model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.detection.model_facts import Refusal, Verdict
from app.engine import trials
from app.engine.trials import TrialCrashed, TrialLacksMemory, TrialTooLate, run_trial
from app.host.messages import DecoderPlan, HostPlan, TrialPlan, TrialTooLarge
from app.video.protocol.limits import VideoLimits
from app.video.results import WorkCancelled

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 30.0
MIB = 1024 * 1024
VERDICT = Verdict(name="model", refusal=Refusal(code="model_fault", detail="its own words"))
SCRIPT = """
import os, signal, sys, time
from multiprocessing.connection import Connection
from app.detection.model_facts import Refusal, Verdict
from app.host.messages import TrialBegun, TrialEnded, TrialTooLarge
channel = Connection(int(sys.argv[1]))
plan = channel.recv()
begun = time.monotonic()
channel.send(TrialBegun(1))
verdict = Verdict(name=plan.model, refusal=Refusal(code="model_fault", detail="its own words"))
"""


def plan(room_bytes: int = 1 << 40) -> TrialPlan:
    decoders = DecoderPlan(VideoLimits(), 1, 0, 0, 1.0, require_sandbox=False, ready_children=0)
    host = HostPlan("cpu", (), None, None, "float32", 0, None, Path("verdicts"), decoders, "info")
    return TrialPlan(host, "model", room_bytes)


def follows(script: str, started: list[int]) -> Callable[[int, int], subprocess.Popen[bytes]]:
    def spawn(descriptor: int, stderr: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT + script, str(descriptor)],
            pass_fds=(descriptor,),
            stderr=stderr,
            cwd=CHECKOUT,
            start_new_session=True,
        )
        started.append(process.pid)
        return process

    return spawn


def never() -> bool:
    return False


def run(script: str, *, seconds: float = SECONDS, room_bytes: int = 1 << 40) -> Verdict:
    """Run a trial that follows `script`; whatever comes of it, nothing of it is left."""
    started: list[int] = []
    try:
        return run_trial(follows(script, started), plan(room_bytes), seconds=seconds, cancelled=never)
    finally:
        deadline = time.monotonic() + SECONDS  # the kernel needs a moment for a killed process
        while [process for process in psutil.process_iter() if is_running_in(process, started)]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running_in(process: psutil.Process, groups: list[int]) -> bool:
    try:
        return os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_the_verdict_arrives() -> None:
    assert run("channel.send(TrialEnded(verdict))") == VERDICT


def test_what_the_model_started_ends_with_its_trial() -> None:
    assert run("os.fork() or time.sleep(600)\nchannel.send(TrialEnded(verdict))\ntime.sleep(600)") == VERDICT


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("os.abort()", r"signal 6 \(Aborted\)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"signal 11 \(Segmentation fault\)"),
        ("os._exit(3)", "exit status 3"),
        ("sys.stderr.write('first\\nthe last words\\n')\nsys.stderr.flush()\nos.abort()", "the last words"),
        ("raise KeyError('inside')", "exit status 1: KeyError: 'inside'"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", r"signal 35 \(Real-time signal 1\)"),
        (
            "while os.write(2, b'w' * 65536) and time.monotonic() < begun + 1: pass\nos._exit(3)",
            "status 3: w",
        ),
    ],
)
def test_a_process_that_ends_is_reported_with_its_last_words(script: str, how: str) -> None:
    with pytest.raises(TrialCrashed, match=how):
        run(script)


@pytest.mark.parametrize(
    "script", ["time.sleep(600)", "while True: pass", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_process_that_hangs_is_ended_at_the_deadline(script: str) -> None:
    started = time.monotonic()
    with pytest.raises(TrialTooLate):
        run(script, seconds=1.5)
    assert time.monotonic() - started < 20


def test_a_process_that_closes_its_end_and_runs_on_is_ended() -> None:
    with pytest.raises(TrialCrashed, match="signal 9"):
        run("channel.close()\ntime.sleep(600)")


@pytest.mark.parametrize(
    "words",
    [
        "memory allocation of 1308987 bytes failed",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "RuntimeError: can't start new thread",
    ],
)
def test_native_code_that_ends_the_process_for_lack_of_memory_is_told_from_a_crash(words: str) -> None:
    with pytest.raises(TrialLacksMemory):
        run(f"sys.stderr.write({words!r})\nsys.stderr.flush()\nos._exit(1)")


def test_what_a_process_writes_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    read = trials._LastWords.read

    def note(words: trials._LastWords) -> None:
        read(words)
        kept.append(len(words.text))

    monkeypatch.setattr(trials._LastWords, "read", note)
    with pytest.raises(TrialTooLate):
        run("while True: os.write(2, b'w' * 65536)", seconds=1.5)
    assert len(kept) > 100
    assert max(kept) == trials.LAST_WORDS_BYTES


def test_a_process_that_cannot_be_ended_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in an uninterruptible call to the system, until that returns."""
    monkeypatch.setattr(trials, "END_SECONDS", 0.1)
    kept: list[subprocess.Popen[bytes]] = []

    def spawn(descriptor: int, stderr: int) -> subprocess.Popen[bytes]:
        kept.append(follows("time.sleep(600)", [])(descriptor, stderr))
        return kept[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda *_: None)
        with pytest.raises(TrialTooLate):
            run_trial(spawn, plan(), seconds=1.0, cancelled=never)
    assert kept[0].poll() is None
    kept[0].kill()
    kept[0].wait()


def test_memory_beyond_the_limit_ends_the_trial() -> None:
    with pytest.raises(TrialLacksMemory):
        run("kept = bytearray(b'x') * (300 << 20)\ntime.sleep(600)", room_bytes=200 * MIB)


def test_the_numbers_of_a_model_that_is_too_large_arrive() -> None:
    with pytest.raises(TrialLacksMemory) as caught:
        run("channel.send(TrialTooLarge(5, 6, 'seven'))\ntime.sleep(600)")
    assert caught.value.needed == TrialTooLarge(5, 6, "seven")


def test_a_trial_can_be_cancelled() -> None:
    asked: list[float] = []

    def soon() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 3

    with pytest.raises(WorkCancelled):
        run_trial(follows("time.sleep(600)", []), plan(), seconds=SECONDS, cancelled=soon)
