"""What runs next, and why. Pure: no store, no host, no clock but the one that is given.

Jobs are taken up by `ClaimTurns`: interactive ones before batch jobs, but every `BATCH_TURN`-th is the
others'; one place is never a batch job's; a job whose model finds no room is overtaken for
`PATIENCE_SECONDS`; a job at which hosts or engines died again and again is tried alone.

Segments of the jobs that run are handed out by `SegmentTurns`: to the job with the fewest under way.

`verdict_on` says what becomes of a job whose host or engine died under it.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from app.errors import FrameboxError, InternalError, ModelFault
from app.jobs.job import Job, Priority
from app.jobs.queue import ANY_DEATHS

BATCH_TURN = 4  # every so many jobs taken up, a batch job comes first
PATIENT_TURN = 4  # of so many segments, one is for a job that is not urgent
PATIENCE_SECONDS = 60.0  # a model's jobs may be overtaken for so long by others that need none to be loaded
SUSPECT_DEATHS = 2  # one may be anybody's, and costs nobody his turn
SUSPECTED = range(SUSPECT_DEATHS, ANY_DEATHS.stop)
UNSUSPECTED = range(SUSPECT_DEATHS)
ALONE_SECONDS = 120.0  # a job that is merely slow keeps the others waiting no longer
LOOK_SECONDS = 0.5  # between two looks at its parts, which may be thousands
MOST_HANGS = 2  # of a model at one job; the first may have been the machine's fault

Clock = Callable[[], float]
T = TypeVar("T")


# ---- jobs


@dataclass(frozen=True, slots=True)
class Claim:
    """Which queued job is to be taken up: the oldest of the first priority that has one like that."""

    priorities: Sequence[Priority] = tuple(Priority)
    without_models: Collection[str] = ()
    only_model: str | None = None
    deaths: range = ANY_DEATHS


class ClaimTurns:
    """Whose turn it is when a place is free."""

    def __init__(
        self, *, places: int, trace_parts: Callable[[str], str], clock: Clock = time.monotonic
    ) -> None:
        """`trace_parts` tells of the parts of a job, by its id: see `PartStore.trace`."""
        self._places = places
        self._claims = 0
        self.patience = Patience(clock)
        self.suspects = Suspects(trace_parts, clock)

    def claims(
        self, running: Sequence[Priority], crowded: Collection[str], *, waits_suspect: bool
    ) -> list[Claim]:
        """Return what to look for, in this order; nothing if no job may begin now.

        `running`: of the jobs at work. `crowded`: models that find no room. `waits_suspect`: a job in the
        queue is suspected.
        """
        if len(running) >= self._places or self.suspects.is_one_alone():
            return []
        claims = []
        if waits_suspect and not self.suspects.is_one_at_work():
            claims.append(Claim(without_models=crowded, deaths=SUSPECTED))
        turn = Claim(self._whose_turn(running), crowded, self.patience.overdue(), UNSUSPECTED)
        return [*claims, turn]

    def begun(self, job: Job) -> None:
        """Note that `job` was taken up."""
        self._claims += 1
        self.patience.begun(job.model)
        self.suspects.begin(job)

    def _whose_turn(self, running: Sequence[Priority]) -> Sequence[Priority]:
        if self._places > 1 and list(running).count(Priority.BATCH) >= self._places - 1:
            return (Priority.INTERACTIVE,)
        is_batch_turn = self._claims % BATCH_TURN == BATCH_TURN - 1
        return tuple(reversed(Priority)) if is_batch_turn else tuple(Priority)


class Patience:
    """Tells whose turn it is when a model's jobs were passed over for too long: theirs alone.

    Nothing else begins then, so that the models in use come to be unused.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}  # longest waiting first

    @property
    def models(self) -> frozenset[str]:
        """The models whose jobs were passed over, and of which none has begun since."""
        return frozenset(self._since)

    def note(self, passed_over: Collection[str]) -> None:
        """Say for which models jobs wait that are, or were when last told, passed over."""
        now = self._clock()
        kept = {model: since for model, since in self._since.items() if model in passed_over}
        self._since = kept | {model: now for model in sorted(passed_over) if model not in kept}

    def begun(self, model: str) -> None:
        """Say that a job of `model` has begun."""
        self._since.pop(model, None)

    def overdue(self) -> str | None:
        """The model that has waited longest, if it waited for too long."""
        model = next(iter(self._since), None)
        if model is None or self._clock() - self._since[model] < PATIENCE_SECONDS:
            return None
        return model


# ---- jobs at which hosts or engines die


class Verdict(Enum):
    """What becomes of a job whose host died."""

    GO_ON = "go on"  # its segments are run again, and it does not notice
    ALONE = "alone"  # it goes back to the queue, and is tried alone
    FAIL = "fail"


def verdict_on(job: Job, *, most_deaths: int) -> Verdict:
    """Return what becomes of a running job; its deaths and hangs are those so far, the last one included."""
    if job.deaths >= most_deaths or job.hangs >= MOST_HANGS:
        return Verdict.FAIL
    return Verdict.ALONE if job.deaths in SUSPECTED else Verdict.GO_ON


def why_failed(job: Job, *, most_deaths: int, call_seconds: float) -> FrameboxError | None:
    """Return why a job is not tried any more; None if it is."""
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
    parts: str  # their trace at its start
    ends_at: float  # in the clock's seconds


class Suspects:
    """At most one suspected job runs at a time, and nothing is begun beside it.

    Nobody can tell which of the jobs that were running made a host or an engine die. So each is suspected
    after a second death without a new part, and runs alone: only the guilty one dies alone. It is trusted
    once it has made a part; after ALONE_SECONDS it is no longer alone, but still the only one.
    """

    def __init__(self, trace_parts: Callable[[str], str], clock: Clock = time.monotonic) -> None:
        self._trace_parts = trace_parts
        self._clock = clock
        self._next_look = 0.0
        self._trial: _Trial | None = None

    def begin(self, job: Job) -> None:
        """Note that `job` runs now."""
        if job.deaths in SUSPECTED:
            self._trial = _Trial(job.id, self._trace_parts(job.id), self._clock() + ALONE_SECONDS)

    def end(self, job_id: str) -> None:
        """Note that a job runs no longer."""
        if self._trial is not None and self._trial.job_id == job_id:
            self._trial = None

    def is_one_at_work(self) -> bool:
        """Whether a suspected job runs that has not made a part yet."""
        if self._trial is not None and self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_SECONDS
            if self._trace_parts(self._trial.job_id) != self._trial.parts:
                self._trial = None
        return self._trial is not None

    def is_one_alone(self) -> bool:
        """Whether no other job may begin now."""
        return self.alone() is not None

    def alone(self) -> str | None:
        """The job beside which no segment of another is begun now."""
        if self.is_one_at_work() and self._trial is not None and self._clock() < self._trial.ends_at:
            return self._trial.job_id
        return None


# ---- segments


@dataclass(frozen=True, slots=True)
class _Queued(Generic[T]):
    item: T
    is_urgent: bool


class SegmentTurns(Generic[T]):
    """Whose segment is begun when a slot is free. Not shared between threads.

    The job with the fewest segments running has its turn, and among equals the one that has waited longest.
    `express_slots` more are kept for jobs that have no segment running at all, so that a short video begins
    at once, whatever else is under way. Urgent jobs come before all others, but for every `PATIENT_TURN`-th
    segment while both wait. Beside `alone`, a job's id, no other has a turn, nor has that one before the end
    of the others' segments.
    """

    def __init__(self, *, slots: int, express_slots: int = 0) -> None:
        self.slots = slots
        self._all_slots = slots + express_slots
        self._waiting: OrderedDict[str, deque[_Queued[T]]] = OrderedDict()  # longest since its turn first
        self._running: Counter[str] = Counter()
        self._contested = 0  # segments begun while jobs of both kinds waited
        self.alone: str | None = None

    def add(self, job_id: str, item: T, *, is_urgent: bool = False) -> None:
        """Queue a segment behind those of its job."""
        self._waiting.setdefault(job_id, deque()).append(_Queued(item, is_urgent))

    def put_back(self, job_id: str, items: Sequence[T], *, is_urgent: bool = False) -> None:
        """Queue segments that were begun and lost, before all others of their job; their runs have ended."""
        queue = self._waiting.setdefault(job_id, deque())
        queue.extendleft(_Queued(item, is_urgent) for item in reversed(items))
        self._waiting.move_to_end(job_id, last=False)

    def take(self, can_run: Callable[[T], bool] = lambda _: True) -> T | None:
        """Return the segment that is begun now, which is then running; None if none may be.

        `can_run` tells of a job's next segment whether there is a host for it.
        """
        job_id = self._whose_turn(can_run)
        if job_id is None:
            return None
        queue = self._waiting.pop(job_id)
        queued = queue.popleft()
        if queue:
            self._waiting[job_id] = queue
        self._running[job_id] += 1
        return queued.item

    def end(self, job_id: str) -> None:
        """Note that a segment of the job runs no longer."""
        self._running[job_id] -= 1
        if not self._running[job_id]:
            del self._running[job_id]

    def withdraw(self, wanted: Callable[[T], bool] = lambda _: True) -> list[T]:
        """Take back the segments that wait and are `wanted` so: by default all. Returns them."""
        taken = []
        for job_id, queue in list(self._waiting.items()):
            taken += [queued.item for queued in queue if wanted(queued.item)]
            kept = deque(queued for queued in queue if not wanted(queued.item))
            if kept:
                self._waiting[job_id] = kept
            else:
                del self._waiting[job_id]
        return taken

    def _whose_turn(self, can_run: Callable[[T], bool]) -> str | None:
        running = self._running.total()
        if running >= self._all_slots:
            return None
        jobs = [
            job_id
            for job_id, queue in self._waiting.items()
            if (running < self.slots or not self._running[job_id])
            and self._may_run(job_id)
            and can_run(queue[0].item)
        ]
        urgent = [job_id for job_id in jobs if self._waiting[job_id][0].is_urgent]
        if urgent and len(urgent) < len(jobs):
            self._contested += 1
            is_patient_turn = self._contested % PATIENT_TURN == 0
            jobs = [job_id for job_id in jobs if job_id not in urgent] if is_patient_turn else urgent
        return min(jobs, key=self._running.__getitem__, default=None)

    def _may_run(self, job_id: str) -> bool:
        if self.alone is None:
            return True
        return job_id == self.alone and self._running.total() == self._running[job_id]
