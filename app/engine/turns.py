"""Scheduling: which job starts next, and which segment runs next. Pure: no store, no host, no hidden clock.

`JobTurns` starts jobs. Interactive jobs come before batch jobs, but every `BATCH_JOB_TURN`-th job to start is
a batch job, and batch jobs never take all slots. A job whose model does not fit into memory may be overtaken
for `OVERTAKING_SECONDS`. A job at which hosts or engines died repeatedly runs in quarantine: without others.

`SegmentTurns` hands out the segments of running jobs, to the job with the fewest segments running.

`must_requeue` and `why_failed` decide what happens to a job at which hosts or engines died.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import FrameboxError, InternalError, ModelFault
from app.jobs.job import Job, Priority
from app.jobs.queue import ANY_DEATHS, Claim

BATCH_JOB_TURN = 4  # every fourth job to start is a batch job, if one waits
BATCH_SEGMENT_TURN = 4  # every fourth segment is a batch job's, while jobs of both priorities wait
OVERTAKING_SECONDS = 60.0  # how long jobs of other models may overtake those of a model without room
QUARANTINE_DEATHS = 2  # one death may be any job's fault, and has no consequence
QUARANTINED = range(QUARANTINE_DEATHS, ANY_DEATHS.stop)
TRUSTED = range(QUARANTINE_DEATHS)
EXCLUSIVE_SECONDS = 120.0  # then other jobs may start too: the quarantined job may merely be slow
PART_CHECK_SECONDS = 0.5  # between two checks for new parts, of which there may be thousands
MOST_HANGS = 2  # of a model at one job; the first may have been the machine's fault

Clock = Callable[[], float]
T = TypeVar("T")


# ---- jobs


class JobTurns:
    """Decides which job starts when a slot for running jobs is free."""

    def __init__(
        self, *, slots: int, trace_parts: Callable[[str], str], clock: Clock = time.monotonic
    ) -> None:
        """`trace_parts` takes a job's id and returns a text that changes with every new part."""
        self._slots = slots
        self._started_count = 0
        self.overtaken = OvertakenModels(clock)
        self.quarantine = Quarantine(trace_parts, clock)

    def claims(
        self, running: Sequence[Priority], crowded: Collection[str], *, quarantined_waiting: bool
    ) -> list[Claim]:
        """Return what to look for in the queue, in this order; nothing if no job may start now.

        `running` holds the priorities of the running jobs, `crowded` the models that have no room in memory.
        """
        if len(running) >= self._slots or self.quarantine.exclusive_job_id() is not None:
            return []
        if self._slots > 1 and running.count(Priority.BATCH) >= self._slots - 1:
            priorities: Sequence[Priority] = (Priority.INTERACTIVE,)
        elif self._started_count % BATCH_JOB_TURN == BATCH_JOB_TURN - 1:
            priorities = tuple(reversed(Priority))
        else:
            priorities = tuple(Priority)
        claims = [Claim(priorities, crowded, self.overtaken.overdue(), TRUSTED)]
        if quarantined_waiting and not self.quarantine.is_occupied():
            claims.insert(0, Claim(without_models=crowded, deaths=QUARANTINED))
        return claims

    def note_started(self, job: Job) -> None:
        """Take note that `job` was started."""
        self._started_count += 1
        self.overtaken.note_started(job.model)
        self.quarantine.note_started(job)


class OvertakenModels:
    """The models without room in memory whose jobs are overtaken by others, and since when.

    While one of them is overdue, no job of another model starts, so that models in use become idle.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}  # in order: the longest wait first

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._since)

    def update(self, overtaken: Collection[str]) -> None:
        """Keep only the models of `overtaken`, and add those that are new."""
        now = self._clock()
        kept = {model: since for model, since in self._since.items() if model in overtaken}
        self._since = kept | {model: now for model in sorted(overtaken) if model not in kept}

    def note_started(self, model: str) -> None:
        """Take note that a job of `model` was started."""
        self._since.pop(model, None)

    def overdue(self) -> str | None:
        """Return the model that has waited longest, if it has waited for too long."""
        model = next(iter(self._since), None)
        if model is None or self._clock() - self._since[model] < OVERTAKING_SECONDS:
            return None
        return model


# ---- jobs at which hosts or engines die


def must_requeue(job: Job, *, most_deaths: int) -> bool:
    """Return whether a running job must stop after a death or hang, to run in quarantine or to fail."""
    return job.deaths >= min(QUARANTINE_DEATHS, most_deaths) or job.hangs >= MOST_HANGS


def why_failed(job: Job, *, most_deaths: int, call_seconds: float) -> FrameboxError | None:
    """Return why a job must not be tried again; None if it may."""
    if job.hangs >= MOST_HANGS:
        return ModelFault(
            f"Model {job.model!r} gave no answer within {call_seconds:g} seconds, {job.hangs} times."
        )
    if job.deaths >= most_deaths:
        return InternalError(
            f"The program that computes died {job.deaths} times in a row while it worked on this job, "
            "which made no progress; see its log."
        )
    return None


@dataclass(frozen=True, slots=True)
class _Trial:
    job_id: str
    parts: str  # their trace when the job started
    exclusive_until: float  # in the clock's seconds


class Quarantine:
    """Runs jobs that may be killing hosts or engines one at a time, and at first without any other job.

    When a host or engine dies, any of the jobs that were running may be the cause. So each of them is
    quarantined after its second death without a new part: then only the guilty one dies again. A job leaves
    the quarantine with its first new part.
    """

    def __init__(self, trace_parts: Callable[[str], str], clock: Clock = time.monotonic) -> None:
        self._trace_parts = trace_parts
        self._clock = clock
        self._next_check = 0.0
        self._trial: _Trial | None = None

    def note_started(self, job: Job) -> None:
        """Take note that `job` was started."""
        if job.deaths in QUARANTINED:
            self._trial = _Trial(job.id, self._trace_parts(job.id), self._clock() + EXCLUSIVE_SECONDS)

    def note_ended(self, job_id: str) -> None:
        """Take note that a job has stopped running."""
        if self._trial is not None and self._trial.job_id == job_id:
            self._trial = None

    def is_occupied(self) -> bool:
        """Return whether a quarantined job is running that has not made a part yet."""
        return self._current() is not None

    def exclusive_job_id(self) -> str | None:
        """Return the job that must run without others; None if there is none."""
        trial = self._current()
        return trial.job_id if trial is not None and self._clock() < trial.exclusive_until else None

    def _current(self) -> _Trial | None:
        if self._trial is not None and self._clock() >= self._next_check:
            self._next_check = self._clock() + PART_CHECK_SECONDS
            if self._trace_parts(self._trial.job_id) != self._trial.parts:
                self._trial = None
        return self._trial


# ---- segments


@dataclass(frozen=True, slots=True)
class _Queued(Generic[T]):
    item: T
    is_urgent: bool


class SegmentTurns(Generic[T]):
    """Decides whose segment starts when a slot is free. Not thread-safe.

    The job with the fewest running segments is next, and among equals the one that has waited longest. Urgent
    jobs come first, except for every `BATCH_SEGMENT_TURN`-th segment while both kinds wait. `express_slots`
    are additional slots for jobs with no segment running, so that a short video starts at once. While
    `exclusive_job_id` is set, only that job's segments start, and only when those of others have ended.
    """

    def __init__(self, *, slots: int, express_slots: int = 0) -> None:
        self.slots = slots
        self._all_slots = slots + express_slots
        self._waiting: OrderedDict[str, deque[_Queued[T]]] = OrderedDict()  # longest since its turn first
        self._running: Counter[str] = Counter()
        self._contested = 0  # segments started while jobs of both kinds waited
        self.exclusive_job_id: str | None = None

    def add(self, job_id: str, item: T, *, is_urgent: bool = False) -> None:
        """Queue a segment behind the others of its job."""
        self._waiting.setdefault(job_id, deque()).append(_Queued(item, is_urgent))

    def put_back(self, job_id: str, item: T, *, is_urgent: bool = False) -> None:
        """End a segment that was started and lost, and queue it before all others."""
        self.end(job_id)
        self._waiting.setdefault(job_id, deque()).appendleft(_Queued(item, is_urgent))
        self._waiting.move_to_end(job_id, last=False)

    def take(self, can_run: Callable[[T], bool] = lambda _: True) -> T | None:
        """Return the segment to start, which then counts as running; None if none may start.

        `can_run` tells whether some host can run a job's next segment.
        """
        running = self._running.total()
        if running >= self._all_slots:
            return None
        jobs = [
            job_id
            for job_id, queue in self._waiting.items()
            if (running < self.slots or not self._running[job_id])
            and (
                self.exclusive_job_id is None
                or (job_id == self.exclusive_job_id and running == self._running[job_id])
            )
            and can_run(queue[0].item)
        ]
        if not jobs:
            return None
        urgent = [job_id for job_id in jobs if self._waiting[job_id][0].is_urgent]
        if urgent and len(urgent) < len(jobs):
            self._contested += 1
            is_batch_turn = self._contested % BATCH_SEGMENT_TURN == 0
            jobs = [job_id for job_id in jobs if job_id not in urgent] if is_batch_turn else urgent
        job_id = min(jobs, key=self._running.__getitem__)
        queue = self._waiting.pop(job_id)
        queued = queue.popleft()
        if queue:
            self._waiting[job_id] = queue
        self._running[job_id] += 1
        return queued.item

    def end(self, job_id: str) -> None:
        """Take note that a segment of the job has stopped running."""
        self._running[job_id] -= 1
        if not self._running[job_id]:
            del self._running[job_id]

    def withdraw(self, wanted: Callable[[T], bool] = lambda _: True) -> list[T]:
        """Remove the waiting segments for which `wanted` is true, and return them."""
        taken = []
        for job_id, queue in list(self._waiting.items()):
            taken += [queued.item for queued in queue if wanted(queued.item)]
            kept = deque(queued for queued in queue if not wanted(queued.item))
            if kept:
                self._waiting[job_id] = kept
            else:
                del self._waiting[job_id]
        return taken
