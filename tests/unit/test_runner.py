"""Jobs take turns, segment by segment."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from concurrent.futures import CancelledError
from dataclasses import dataclass

import pytest

from app.pipeline.runner import LocalRunner

DEADLINE = 10


@dataclass(frozen=True)
class Task:
    job_id: str
    name: str


class Recorder:
    """Runs tasks that do nothing but wait until they are let go."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.begun: queue.Queue[str] = queue.Queue()
        self.gate = threading.Event()
        self._let_go: set[str] = set()

    def let_go(self, name: str) -> None:
        self._let_go.add(name)

    def __call__(self, task: Task, _cancelled: object) -> str:
        self.begun.put(task.name)
        deadline = time.monotonic() + DEADLINE
        while not self.gate.wait(0.01) and task.name not in self._let_go:
            assert time.monotonic() < deadline
        if task.name == "bad":
            raise ValueError(task.name)
        self.ran.append(task.name)
        return task.name.upper()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def never() -> bool:
    return False


def test_a_new_job_begins_at_once_beside_a_big_one(recorder: Recorder) -> None:
    with LocalRunner(slots=2, express_slots=1, run=recorder) as runner:
        futures = [runner.submit(Task("big", f"big-{n}"), never) for n in range(6)]
        assert {recorder.begun.get(timeout=DEADLINE) for _ in range(2)} == {"big-0", "big-1"}
        futures += [runner.submit(Task("small", f"small-{n}"), never) for n in range(2)]
        assert recorder.begun.get(timeout=DEADLINE) == "small-0"
        recorder.gate.set()
        for future in futures:
            future.result(DEADLINE)


def test_the_next_free_slot_goes_to_the_job_with_the_fewest_segments_running(recorder: Recorder) -> None:
    with LocalRunner(slots=2, express_slots=1, run=recorder) as runner:
        futures = [runner.submit(Task("big", f"big-{n}"), never) for n in range(6)]
        assert {recorder.begun.get(timeout=DEADLINE) for _ in range(2)} == {"big-0", "big-1"}
        futures += [
            runner.submit(Task("other", "other-0"), never),
            runner.submit(Task("new", "new-0"), never),
        ]
        assert recorder.begun.get(timeout=DEADLINE) == "other-0"
        recorder.let_go("big-0")
        assert recorder.begun.get(timeout=DEADLINE) == "new-0"
        recorder.gate.set()
        for future in futures:
            future.result(DEADLINE)


def test_a_task_that_fails_fails_alone(recorder: Recorder) -> None:
    recorder.gate.set()
    with LocalRunner(slots=1, run=recorder) as runner:
        bad = runner.submit(Task("job", "bad"), never)
        good = runner.submit(Task("job", "good"), never)
        with pytest.raises(ValueError, match="bad"):
            bad.result(DEADLINE)
        assert good.result(DEADLINE) == "GOOD"


def test_parking_lets_what_runs_finish_and_takes_nothing_new(recorder: Recorder) -> None:
    with LocalRunner(slots=1, run=recorder) as runner:
        running = runner.submit(Task("job", "running"), never)
        assert recorder.begun.get(timeout=DEADLINE) == "running"
        waiting = runner.submit(Task("job", "waiting"), never)
        runner.park()
        late = runner.submit(Task("job", "late"), never)
        recorder.gate.set()
        assert running.result(DEADLINE) == "RUNNING"
        for future in (waiting, late):
            with pytest.raises(CancelledError):
                future.result(DEADLINE)


def test_urgent_jobs_come_first_and_the_others_are_not_starved(recorder: Recorder) -> None:
    recorder.gate.set()
    runner = LocalRunner(slots=1, run=recorder)
    futures = [runner.submit(Task("patient", f"patient-{n}"), never) for n in range(3)]
    futures += [runner.submit(Task("urgent", f"urgent-{n}"), never, is_urgent=True) for n in range(7)]
    with runner:
        for future in futures:
            future.result(DEADLINE)
    order = [name.partition("-")[0][0] for name in recorder.ran]
    assert "".join(order) == "uuupuuupup"


class Memory:
    """What a segment holds while it runs."""


def test_a_segment_that_failed_lets_go_of_its_memory_at_once() -> None:
    """Not only when the garbage collector comes by: it may be a ring of a hundred mebibytes."""
    held: list[weakref.ref[Memory]] = []

    def fail(task: Task, _cancelled: object) -> str:
        memory = Memory()
        held.append(weakref.ref(memory))
        raise ValueError(task.name)

    gc.disable()
    try:
        with LocalRunner(slots=1, run=fail) as runner:
            with pytest.raises(ValueError, match="bad"):
                runner.submit(Task("job", "bad"), never).result(timeout=DEADLINE)
            with pytest.raises(ValueError, match="worse"):  # its turn ends after the other's
                runner.submit(Task("job", "worse"), never).result(timeout=DEADLINE)
        assert [memory() for memory in held] == [None, None]
    finally:
        gc.enable()
