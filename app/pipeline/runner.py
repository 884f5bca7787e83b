"""Where segments run: the Runner protocol, and the runner of this machine."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, Self

from app.pipeline.segment_task import Cancelled, SegmentOutcome, SegmentTask

PATIENT_TURN = 4  # of so many segments, one is for a job that is not urgent


class Runner(Protocol):
    """Runs the segments of many jobs, and shares its places among the jobs segment by segment."""

    @property
    def slots(self) -> int:
        """How many segments run at a time."""
        ...

    def submit(
        self, task: SegmentTask, cancelled: Cancelled, *, is_urgent: bool = False
    ) -> Future[SegmentOutcome]:
        """Queue `task`; the future ends with its outcome, or with what it raised.

        Tasks of urgent jobs come first, but those of other jobs are never starved.
        A task that has not begun can be taken back by `Future.cancel`.
        """
        ...

    def park(self) -> None:
        """Cancel the futures of tasks that have not begun, now and later; what runs goes on to its end."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class _Queued:
    job_id: str
    task: SegmentTask
    cancelled: Cancelled
    future: Future[SegmentOutcome]
    is_urgent: bool


class LocalRunner:
    """Runs segments in threads of this process: a thread a decoder child.

    A free slot goes to the job with the fewest segments running, and among equals to the one that has
    waited longest. `express_slots` more are kept for jobs that have no segment running at all, so that a
    short video begins at once, whatever else is under way. Urgent jobs come before all others, but for every
    `PATIENT_TURN`-th segment while both wait.
    Callers bound their own queues: a job submits a few segments more than there are slots.
    """

    def __init__(
        self, *, slots: int, express_slots: int = 0, run: Callable[[SegmentTask, Cancelled], SegmentOutcome]
    ) -> None:
        self._slots = slots
        self._run = run
        self._waiting: OrderedDict[str, deque[_Queued]] = OrderedDict()  # longest since its last turn first
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._contested = 0  # segments begun while jobs of both kinds waited
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"segment-{number}")
            for number in range(slots + express_slots)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def park(self) -> None:
        with self._changed:
            self._is_closed = True
            for queue in self._waiting.values():
                for queued in queue:
                    queued.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Park, and return when what runs has ended."""
        self.park()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        return self._slots

    def submit(
        self, task: SegmentTask, cancelled: Cancelled, *, is_urgent: bool = False
    ) -> Future[SegmentOutcome]:
        future: Future[SegmentOutcome] = Future()
        job_id = task.job_id
        with self._changed:
            if self._is_closed:
                future.cancel()
                return future
            queued = _Queued(job_id, task, cancelled, future, is_urgent)
            self._waiting.setdefault(job_id, deque()).append(queued)
            self._changed.notify_all()
        return future

    def _work(self) -> None:
        while (queued := self._next()) is not None:
            try:
                self._execute(queued)
            finally:
                self._end_turn(queued.job_id)
                del queued  # while this thread waits for the next one, nobody needs what came of it

    def _execute(self, queued: _Queued) -> None:
        if not queued.future.set_running_or_notify_cancel():
            return
        try:
            outcome = self._run(queued.task, queued.cancelled)
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: the job gets it
            queued.future.set_exception(error)
            del queued  # else the error holds this frame, the frame its future, and that the error: for long
        else:
            queued.future.set_result(outcome)

    def _next(self) -> _Queued | None:
        """Wait for a task that may run; its job goes to the end of the line. None once closed."""
        with self._changed:
            while (job_id := self._whose_turn()) is None:
                if self._is_closed:
                    return None
                self._changed.wait()
            queue = self._waiting.pop(job_id)
            queued = queue.popleft()
            if queue:
                self._waiting[job_id] = queue
            self._running[job_id] += 1
            return queued

    def _whose_turn(self) -> str | None:
        """The job whose segment is begun next; None if none may be."""
        has_slot = self._running.total() < self._slots
        jobs = [job_id for job_id in self._waiting if has_slot or not self._running[job_id]]
        urgent = [job_id for job_id in jobs if self._waiting[job_id][0].is_urgent]
        if urgent and len(urgent) < len(jobs):
            self._contested += 1
            is_patient_turn = self._contested % PATIENT_TURN == 0
            jobs = [job_id for job_id in jobs if job_id not in urgent] if is_patient_turn else urgent
        return min(jobs, key=self._running.__getitem__, default=None)

    def _end_turn(self, job_id: str) -> None:
        with self._changed:
            self._running[job_id] -= 1
            if not self._running[job_id]:
                del self._running[job_id]
            self._changed.notify_all()
