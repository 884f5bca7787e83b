"""The engine: the one process of a data folder that takes up its jobs and schedules their work.

It computes nothing: hosts do. Its loop claims jobs and gives each a thread that calls `detect_video`; their
segments share the hosts. Whatever ends this process, the next one goes on from the jobs' finished parts.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from app.engine.catalog import Catalog
from app.engine.host_pool import HostDeath, HostPool
from app.engine.job_run import JobRun
from app.engine.records import NO_ROOM_SECONDS, Records
from app.engine.turns import SUSPECT_DEATHS, ClaimTurns, Verdict, verdict_on
from app.failpoints import fail_point
from app.jobs.job import Job, Waiting
from app.jobs.queue import LeaseLost
from app.jobs.retention import Retention
from app.storage.space import is_disk_full
from app.wakeups import Listener

TICK_SECONDS = 0.1  # how often the loop looks after its hosts while they work; for news it is woken
IDLE_SECONDS = 1.0  # … while there is no job
HEARTBEAT_SECONDS = 1.0
HOST_STOP_SECONDS = 5.0  # hosts that have nothing to do and are told to stop get so long
PUT_BACK_SECONDS = 5.0  # a job's thread puts its job back within this, once no host works for it any more
RETENTION_SECONDS = 10.0  # between two looks for jobs that need no longer be kept

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine allows itself."""

    default_model: str  # the engine is ready once it is loaded
    stop_seconds: float  # after a request to stop, running segments have so long to finish
    most_deaths: int  # of engines and hosts, at a job that gets no further; then it ends


class Engine:
    """Runs jobs until it is told to stop. One a data folder: whoever makes it holds the folder's lock."""

    def __init__(
        self,
        records: Records,
        hosts: HostPool,
        catalog: Catalog,
        turns: ClaimTurns,
        retention: Retention,
        make_run: Callable[[Job], JobRun],
        limits: EngineLimits,
    ) -> None:
        self._records = records
        self._hosts = hosts
        self._catalog = catalog
        self._turns = turns
        self._retention = retention
        self._make_run = make_run
        self._limits = limits
        self._stop = records.stop
        self._listener: Listener | None = None  # the loop's
        self._running: dict[str, JobRun] = {}
        self._is_ready = False
        self._fault: Exception | None = None  # of the default model
        self._next_records = 0.0  # monotonic seconds; later where the disk refused a write
        self._next_heartbeat = 0.0
        self._next_retention = 0.0
        self._announced: Any = None  # what was last said of the models

    def stop(self) -> None:
        """Ask `run` to return: finish or park the running segments, put the jobs back. Safe in a signal."""
        self._stop.set()
        self.wake()

    def wake(self) -> None:
        """Have the loop look at once. Any thread, or a signal's handler."""
        if self._listener is not None:
            self._listener.interrupt()

    def run(self) -> None:
        """Run jobs until `stop`. Raises NoHost if none can be had; what is wrong with the default model."""
        try:
            if not self._stop.is_set():
                self._records.begin()
                _log.info("engine started", pid=os.getpid(), epoch=self._records.epoch)
                with self._records.listen() as self._listener:
                    self._loop(self._listener)
                    self._park(self._listener)
        except LeaseLost:
            return
        finally:
            for run in self._running.values():
                run.cancel()  # else their threads would keep this process
            self._hosts.close(patience_seconds=HOST_STOP_SECONDS)
            self._records.database.close()

    def _loop(self, listener: Listener) -> None:
        loading: threading.Thread | None = None
        while not self._stop.is_set():
            deaths = self._hosts.tend(alone=self._turns.suspects.alone())
            self._judge(deaths)
            is_wanted = loading is None or (bool(deaths) and not loading.is_alive())
            if is_wanted and self._hosts.has_begun:
                loading = threading.Thread(target=self._load_models, name="load-models", daemon=True)
                loading.start()
            if self._fault is not None:
                with suppress(sqlite3.Error):  # on a full disk clients do not learn the reason
                    self._report()
                raise self._fault
            self._reap()
            try:
                if time.monotonic() >= self._next_records:
                    self._tend_records()
            except sqlite3.Error as error:
                if not is_disk_full(error):
                    raise
                _log.warning("no room on disk for the jobs' records", exc_info=True)
                self._next_records = time.monotonic() + NO_ROOM_SECONDS
            listener.wait(TICK_SECONDS if self._running or not self._is_ready else IDLE_SECONDS)

    # ---- models

    def _load_models(self) -> None:
        """Load each model once: the default one now, the others in the background.

        After the death of a host again: the default model is then the first to be there.
        """
        started = time.monotonic()
        default = self._limits.default_model
        _log.info("default model is loading", model=default)
        try:
            with self._catalog.use(default, self._stop.is_set):
                self._is_ready = True
            _log.info("default model loaded", model=default, seconds=round(time.monotonic() - started, 2))
            self.wake()
            while self._catalog.has_untried() and not self._stop.wait(TICK_SECONDS):
                if self._hosts.is_idle():  # it will be measured: best while nothing else computes
                    self._catalog.try_next(self._stop)
            with self._catalog.use(default, self._stop.is_set):
                pass  # others may have taken its room, or a host its life
        except Exception as error:  # noqa: BLE001 - the thread's boundary
            if self._is_ready:
                _log.warning("default model is not loaded again", exc_info=True)
            elif not self._stop.is_set():
                self._fault = error
                self.wake()

    def _report(self) -> None:
        """Say that the engine lives, and what models there are if that is news."""
        models, is_ready = self._catalog.statuses(), self._is_ready and self._hosts.is_serving()
        news = models != self._announced
        now = time.monotonic()
        advances = {job_id: run.advance(now) for job_id, run in self._running.items()}
        epoch = self._records.epoch
        self._records.queue.report_progress(
            epoch, {job_id: advance for job_id, advance in advances.items() if advance is not None}
        )
        self._records.heartbeats.report_engine(
            epoch,
            ready=is_ready,
            models=models if news else None,
            hosts=self._hosts.statuses(),
            sandbox=self._hosts.machine.sandbox if news and self._hosts.has_begun else None,
        )
        self._announced = models

    # ---- jobs

    def _tend_records(self) -> None:
        queue, epoch = self._records.queue, self._records.epoch
        for job_id in queue.cancel_requests(epoch):
            if job_id in self._running:
                self._running[job_id].cancel()
        if self._is_ready:
            self._claim()
        now = time.monotonic()
        if now >= self._next_heartbeat or self._announced != self._catalog.statuses():
            self._report()
            self._next_heartbeat = now + HEARTBEAT_SECONDS
        if now >= self._next_retention and not self._retention.remove_old():
            self._next_retention = now + RETENTION_SECONDS

    def _claim(self) -> None:
        queue = self._records.queue
        while not self._stop.is_set():
            if not self._records.has_room():
                queue.say_waiting(Waiting.DISK_SPACE)
                return
            crowded = self._hosts.crowded_models()
            job = self._next_job(crowded)
            if job is None:
                queue.say_waiting(None, crowded_models=crowded)
                return
            fail_point("job_claimed")
            self._turns.begun(job)
            run = self._running[job.id] = self._make_run(job)
            run.start(self.wake)

    def _next_job(self, crowded: frozenset[str]) -> Job | None:
        queue, patience = self._records.queue, self._turns.patience
        patience.note(queue.queued_models({*crowded, *patience.models}))
        claims = self._turns.claims(
            [run.job.priority for run in self._running.values()],
            crowded,
            waits_suspect=queue.has_queued(deaths=SUSPECT_DEATHS),
        )
        for claim in claims:
            job = queue.claim(
                self._records.epoch,
                claim.priorities,
                without_models=claim.without_models,
                only_model=claim.only_model,
                deaths=claim.deaths,
            )
            if job is not None:
                return job
        return None

    def _reap(self) -> None:
        for job_id, run in list(self._running.items()):
            if run.is_over:
                del self._running[job_id]
                self._turns.suspects.end(job_id)

    def _judge(self, deaths: list[HostDeath]) -> None:
        """Put back the jobs that are suspected of the end of hosts, to be tried alone or to end."""
        for death in deaths:
            at_work = {*death.job_ids} if death.hung_job_id is None else {death.hung_job_id}
            if not at_work:
                continue
            for job in self._records.count_deaths(at_work, hung=death.hung_job_id):
                verdict = verdict_on(job, most_deaths=self._limits.most_deaths)
                _log.warning("a host ended at a job", job_id=job.id, deaths=job.deaths, verdict=verdict.value)
                if verdict is not Verdict.GO_ON and job.id in self._running:
                    self._running[job.id].cancel()

    # ---- the end

    def _park(self, listener: Listener) -> None:
        """Let running segments finish within their time; the jobs' threads put their jobs back.

        What is unfinished then is lost with the hosts, which are killed: it is run again by the next engine.
        """
        started, deadline = time.monotonic(), time.monotonic() + self._limits.stop_seconds
        self._records.say_stopping()
        self._hosts.park()
        if self._running:
            _log.info(
                "stopping: waiting for running segments",
                at_most_seconds=self._limits.stop_seconds,
                segments=self._hosts.segments_running(),
                jobs=len(self._running),
            )
        while self._has_runs() and time.monotonic() < deadline:
            self._hosts.tend()
            listener.wait(TICK_SECONDS)
        if self._has_runs():
            _log.warning(
                "stopping: segments are given up, and will be run again",
                segments=self._hosts.segments_running(),
                jobs=sum(not run.is_over for run in self._running.values()),
            )
        for run in self._running.values():
            run.cancel()
        self._hosts.close(patience_seconds=0.0 if self._has_runs() else HOST_STOP_SECONDS)
        deadline = time.monotonic() + PUT_BACK_SECONDS
        while self._has_runs() and time.monotonic() < deadline:
            listener.wait(TICK_SECONDS)
        self._records.say_stopping()
        _log.info("engine stopped", seconds=round(time.monotonic() - started, 2))

    def _has_runs(self) -> bool:
        return any(not run.is_over for run in self._running.values())
