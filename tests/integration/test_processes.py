"""Locks that outlive their taker in its children, and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.programs.processes import LockHeld, take_lock, take_over_lock

CHECKOUT = Path(__file__).resolve().parents[2]

# Takes the lock, passes it to a child that prints its id and sleeps, and ends.
LEAVES_A_CHILD = """
import os, subprocess, sys
from pathlib import Path
from app.programs.processes import take_lock
lock = take_lock(Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
os._exit(0)
"""

# Starts a child that asks to die with it, then waits.
HAS_A_CHILD = """
import subprocess, sys
child = '''
import signal, time
from app.programs.processes import die_with_parent
die_with_parent(signal.SIGTERM)
print("asked", flush=True)
time.sleep(60)
'''
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def run(script: str, *arguments: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a script; return it and the child whose id it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        return process, psutil.Process(int(process.stdout.readline()))


def test_a_lock_is_refused_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    held = take_lock(lock)
    with pytest.raises(LockHeld):
        take_lock(lock)
    os.close(held)
    os.close(take_lock(lock))


def test_orphans_are_ended_and_their_lock_is_taken(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    parent, orphan = run(LEAVES_A_CHILD, str(lock))
    assert parent.wait(10) == 0
    with pytest.raises(LockHeld):
        take_lock(lock)
    os.close(take_over_lock(lock, grace_seconds=0))
    assert not psutil.wait_procs([orphan], timeout=10)[1]


def test_orphans_may_end_by_themselves_in_time(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    parent, orphan = run(LEAVES_A_CHILD, str(lock))
    assert parent.wait(10) == 0
    orphan.send_signal(signal.SIGTERM)
    os.close(take_over_lock(lock, grace_seconds=30))


def test_a_process_with_another_file_open_is_not_ended(tmp_path: Path) -> None:
    parent, bystander = run(LEAVES_A_CHILD, str(tmp_path / "other.lock"))
    assert parent.wait(10) == 0
    os.close(take_over_lock(tmp_path / "a.lock", grace_seconds=0))
    assert bystander.is_running()
    bystander.kill()


def test_a_process_ends_with_its_parent() -> None:
    parent, child = run(HAS_A_CHILD)
    parent.kill()
    parent.wait(10)
    assert not psutil.wait_procs([child], timeout=10)[1]
