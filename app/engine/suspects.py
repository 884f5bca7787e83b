"""Jobs at which engines died again and again: they run alone until they get on, or they end.

Nobody can tell which of the jobs that were running made an engine die. So each is suspected after a second
death without a new part, and runs alone: only the guilty one dies alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import InternalError
from app.jobs.job import Job
from app.jobs.store import ANY_DEATHS

SUSPECT_DEATHS = 2  # one may be anybody's, and costs nobody his turn
SUSPECTED = range(SUSPECT_DEATHS, ANY_DEATHS.stop)
UNSUSPECTED = range(SUSPECT_DEATHS)
ALONE_SECONDS = 120.0  # a job that is merely slow keeps the others waiting no longer
LOOK_SECONDS = 0.5  # between two looks at its parts, which may be thousands


def check_deaths(job: Job, *, most: int) -> None:
    """Raise InternalError if too many engines died at the job for it to be tried again."""
    if job.deaths >= most:
        raise InternalError(
            f"The engine died {job.deaths} times in a row while it worked on this job, "
            "which got no further; the engine's log tells more."
        )


@dataclass(frozen=True, slots=True)
class _Trial:
    job_id: str
    parts: str  # their trace at its start
    ends_at: float  # in the clock's seconds


class Suspects:
    """At most one suspected job runs at a time, and nothing is begun beside it.

    It is trusted once it has made a part; after ALONE_SECONDS it is no longer alone, but still the only one.
    """

    def __init__(
        self, trace_parts: Callable[[str], str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`trace_parts` tells of the parts of a job, by its id: see `PartStore.trace`."""
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
        return self.is_one_at_work() and self._trial is not None and self._clock() < self._trial.ends_at
