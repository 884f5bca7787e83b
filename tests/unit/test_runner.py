"""Jobs take turns, segment by segment."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from app.pipeline.runner import LocalRunner

DEADLINE = 10


class Recorder:
    """Runs 'tasks' that are plain strings; each waits until it is let go."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.began = threading.Event()
        self.gate = threading.Event()

    def __call__(self, task: str, _cancelled: object) -> str:
        self.began.set()
        assert self.gate.wait(DEADLINE)
        if task == "bad":
            raise ValueError(task)
        self.ran.append(task)
        return task.upper()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def never() -> bool:
    return False


def test_a_small_job_is_not_stuck_behind_a_big_one(recorder: Recorder) -> None:
    recorder.gate.set()
    runner = LocalRunner(slots=1, run=recorder)
    futures = [runner.submit("big", f"big-{n}", never) for n in range(4)]
    futures += [runner.submit("small", f"small-{n}", never) for n in range(2)]
    with runner:
        for future in futures:
            future.result(DEADLINE)
    assert recorder.ran == ["big-0", "small-0", "big-1", "small-1", "big-2", "big-3"]


def test_a_task_that_fails_fails_alone(recorder: Recorder) -> None:
    recorder.gate.set()
    with LocalRunner(slots=1, run=recorder) as runner:
        bad = runner.submit("job", "bad", never)
        good = runner.submit("job", "good", never)
        with pytest.raises(ValueError, match="bad"):
            bad.result(DEADLINE)
        assert good.result(DEADLINE) == "GOOD"


def test_parking_lets_what_runs_finish_and_takes_nothing_new(recorder: Recorder) -> None:
    with LocalRunner(slots=1, run=recorder) as runner:
        running = runner.submit("job", "running", never)
        assert recorder.began.wait(DEADLINE)
        waiting = runner.submit("job", "waiting", never)
        runner.park()
        late = runner.submit("job", "late", never)
        recorder.gate.set()
        assert running.result(DEADLINE) == "RUNNING"
        for future in (waiting, late):
            with pytest.raises(CancelledError):
                future.result(DEADLINE)
