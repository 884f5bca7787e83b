"""Programs wake each other; a lost wake-up costs only time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import wakeups as module
from app.wakeups import Listener, Program, Wakeups

LONG_SECONDS = 20.0
SHORT_SECONDS = 0.05
DESCRIPTORS = Path("/proc/self/fd")

# Listens as the engine and is killed there.
KILLED = """
import os, signal, sys
from pathlib import Path
from app.wakeups import Program, Wakeups

listener = Wakeups(Path(sys.argv[1])).listen(Program.ENGINE)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def wakeups(tmp_path: Path) -> Wakeups:
    return Wakeups(tmp_path / "wakeups")


@pytest.fixture
def listener(wakeups: Wakeups) -> Iterator[Listener]:
    with wakeups.listen(Program.ENGINE) as listener:
        yield listener


def test_a_wait_without_a_wake_up_ends_in_time(listener: Listener) -> None:
    assert listener.wait(SHORT_SECONDS) is False


def test_a_wake_up_before_the_wait_is_not_lost(wakeups: Wakeups, listener: Listener) -> None:
    wakeups.wake(Program.ENGINE)
    assert listener.wait(LONG_SECONDS) is True


def test_a_wake_up_ends_a_wait(wakeups: Wakeups, listener: Listener) -> None:
    threading.Timer(SHORT_SECONDS, wakeups.wake, [Program.ENGINE]).start()
    began = time.monotonic()
    assert listener.wait(LONG_SECONDS) is True
    assert time.monotonic() - began < LONG_SECONDS / 2


def test_many_wake_ups_are_one_and_never_wait(wakeups: Wakeups, listener: Listener) -> None:
    for _ in range(100_000):  # more than any queue holds
        wakeups.wake(Program.ENGINE)
    assert listener.wait(LONG_SECONDS) is True
    assert listener.wait(SHORT_SECONDS) is False


def test_every_process_of_a_program_is_woken_and_no_other(wakeups: Wakeups) -> None:
    with (
        wakeups.listen(Program.WEB) as one,
        wakeups.listen(Program.WEB) as other,
        wakeups.listen(Program.COURIER) as courier,
    ):
        wakeups.wake(Program.WEB)
        assert one.wait(LONG_SECONDS) is True
        assert other.wait(LONG_SECONDS) is True
        assert courier.wait(SHORT_SECONDS) is False


def test_listening_wakes_no_other_listener(wakeups: Wakeups, listener: Listener) -> None:
    wakeups.listen(Program.ENGINE).close()
    assert listener.wait(SHORT_SECONDS) is False


def test_waking_without_a_listener_does_nothing(wakeups: Wakeups, tmp_path: Path) -> None:
    wakeups.wake(*Program)
    assert [*tmp_path.iterdir()] == []


def test_a_killed_listener_does_not_block_the_next_one(wakeups: Wakeups, tmp_path: Path) -> None:
    folder = str(tmp_path / "wakeups")
    done = subprocess.run([sys.executable, "-c", KILLED, folder], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    wakeups.wake(Program.ENGINE)
    with wakeups.listen(Program.ENGINE) as listener:
        wakeups.wake(Program.ENGINE)
        assert listener.wait(LONG_SECONDS) is True
    assert {path.name for path in (tmp_path / "wakeups").iterdir()} == {*Program}


def test_only_this_user_can_use_the_files(wakeups: Wakeups, listener: Listener, tmp_path: Path) -> None:
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("wakeups", "wakeups/engine")]
    assert modes == [0o700, 0o600]


def test_a_files_disappearance_is_a_lost_wake_up(
    wakeups: Wakeups, listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "wakeups" / "engine").unlink()
    listener.wait(SHORT_SECONDS)  # the kernel may tell of the end of the watch
    wakeups.wake(Program.ENGINE)
    assert listener.wait(SHORT_SECONDS) is False


def test_a_signals_handler_ends_the_wait(listener: Listener) -> None:
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: listener.interrupt())
    try:
        threading.Timer(SHORT_SECONDS, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        assert listener.wait(LONG_SECONDS) is True
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interruption_of_a_closed_listener_does_nothing(listener: Listener) -> None:
    listener.close()
    listener.interrupt()
    listener.close()


def test_a_closed_listener_leaves_no_descriptor(wakeups: Wakeups) -> None:
    before = len([*DESCRIPTORS.iterdir()])
    wakeups.listen(Program.WEB).close()
    assert len([*DESCRIPTORS.iterdir()]) == before


def test_a_listener_without_inotify_polls(wakeups: Wakeups, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMore:
        """A libc whose user has all that he may have."""

        def inotify_init1(self, _flags: int) -> int:
            return -1

    monkeypatch.setattr(module, "LIBC", NoMore())
    with wakeups.listen(Program.WEB) as listener:
        began = time.monotonic()
        assert listener.wait(LONG_SECONDS) is False
        assert time.monotonic() - began < LONG_SECONDS / 2
        listener.interrupt()
        assert listener.wait(LONG_SECONDS) is True
    assert module.POLL_SECONDS < 1
