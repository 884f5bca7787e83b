"""The engine: the one process of a data folder that takes its jobs and schedules their work.

It computes nothing: hosts do. Its loop claims jobs and gives each a thread that calls `detect_video`; the
segments of all jobs share the hosts. If this process dies, the next one resumes its jobs from their parts.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from app.detection.model_facts import ModelStatus
from app.engine.catalog import Catalog
from app.engine.host_pool import HostPool
from app.engine.job_run import JobRun
from app.engine.records import NO_ROOM_SECONDS, Records
from app.engine.turns import QUARANTINE_DEATHS, JobTurns, must_requeue
from app.failpoints import fail_point
from app.jobs.job import Job, Waiting
from app.jobs.queue import LeaseLost
from app.jobs.retention import Retention
from app.storage.space import is_disk_full
from app.wakeups import Listener

TICK_SECONDS = 0.1  # between two checks of the hosts while they work; news wakes the loop at once
IDLE_SECONDS = 1.0  # … while there is no job
HEARTBEAT_SECONDS = 1.0
HOST_STOP_SECONDS = 5.0  # for idle hosts to end by themselves
PUT_BACK_SECONDS = 5.0  # for jobs' threads to put their jobs back, once no host works for them any more
RETENTION_SECONDS = 10.0  # between two searches for jobs that are no longer kept

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Engine:
    """Runs jobs until it is stopped. One per data folder: its creator holds the folder's engine lock."""

    records: Records
    hosts: HostPool
    catalog: Catalog
    turns: JobTurns
    retention: Retention
    make_run: Callable[[Job], JobRun]
    listener: Listener  # wakes the loop; closed when `run` returns
    stopping: threading.Event
    stop_seconds: float  # for running segments to finish after `stop`
    most_deaths: int  # see `must_requeue`

    def __post_init__(self) -> None:
        self._running: dict[str, JobRun] = {}
        self._next_records = 0.0  # monotonic seconds; later if the disk refused a write
        self._next_heartbeat = 0.0
        self._next_retention = 0.0
        self._reported_models: tuple[ModelStatus, ...] | None = None

    def stop(self) -> None:
        """Ask `run` to return: running segments finish or are dropped, jobs are put back. Signal-safe."""
        self.stopping.set()
        self.listener.interrupt()

    def run(self) -> None:
        """Run jobs until `stop`. Raises NoHost, or what is wrong with the default model."""
        try:
            if self.stopping.is_set():
                return
            self.records.begin()
            _log.info("engine started", pid=os.getpid(), epoch=self.records.epoch)
            while not self.stopping.is_set():
                self._tend_hosts()
                for job_id, run in list(self._running.items()):
                    if run.is_over:
                        del self._running[job_id]
                        self.turns.quarantine.note_ended(job_id)
                try:
                    if time.monotonic() >= self._next_records:
                        self._tend_records()
                except sqlite3.Error as error:
                    if not is_disk_full(error):
                        raise
                    _log.warning("no room on disk for the jobs' records", exc_info=True)
                    self._next_records = time.monotonic() + NO_ROOM_SECONDS
                is_busy = self._running or not self.catalog.is_ready
                self.listener.wait(TICK_SECONDS if is_busy else IDLE_SECONDS)
            self._wind_down()
        except LeaseLost:
            return
        finally:
            for run in self._running.values():
                run.cancel()  # else their threads would keep this process alive
            self.hosts.close(grace_seconds=HOST_STOP_SECONDS)
            self.listener.close()
            self.records.database.close()

    def _tend_hosts(self) -> None:
        """Replace hosts, requeue jobs at which hosts died, load models. Raises the default model's fault."""
        deaths = self.hosts.tend(exclusive_job_id=self.turns.quarantine.exclusive_job_id())
        for death in deaths:
            for job in self.records.count_deaths(death.job_ids, hung=death.hung_job_id):
                requeued = must_requeue(job, most_deaths=self.most_deaths)
                _log.warning("a host ended at a job", job_id=job.id, deaths=job.deaths, requeued=requeued)
                if requeued and job.id in self._running:
                    self._running[job.id].cancel()
        self.catalog.load_in_background(has_host_died=bool(deaths))
        if self.catalog.fault is not None:
            with suppress(sqlite3.Error):  # on a full disk, clients do not learn the reason
                self._report()
            raise self.catalog.fault

    def _tend_records(self) -> None:
        """Cancel and start jobs, report what the engine does, and remove old jobs."""
        for job_id in self.records.queue.cancel_requests(self.records.epoch):
            if job_id in self._running:
                self._running[job_id].cancel()
        if self.catalog.is_ready:
            self._start_jobs()
        now = time.monotonic()
        if now >= self._next_heartbeat or self._reported_models != self.catalog.statuses():
            self._report()
            self._next_heartbeat = now + HEARTBEAT_SECONDS
        if now >= self._next_retention and not self.retention.remove_old():
            self._next_retention = now + RETENTION_SECONDS

    def _start_jobs(self) -> None:
        """Take the jobs whose turn it is from the queue and start them, while any may start."""
        queue, turns = self.records.queue, self.turns
        while not self.stopping.is_set():
            if not self.records.has_room():
                queue.say_waiting(Waiting.DISK_SPACE)
                return
            crowded = self.catalog.crowded_models()
            turns.overtaken.update(queue.queued_models({*crowded, *turns.overtaken.names}))
            claims = turns.claims(
                [run.job.priority for run in self._running.values()],
                crowded,
                quarantined_waiting=queue.has_queued(deaths=QUARANTINE_DEATHS),
            )
            taken = (queue.claim(self.records.epoch, claim) for claim in claims)
            job = next((each for each in taken if each is not None), None)
            if job is None:
                queue.say_waiting(None, crowded_models=crowded)
                return
            fail_point("job_claimed")
            turns.note_started(job)
            self.catalog.note_claim(job.model)
            run = self._running[job.id] = self.make_run(job)
            run.start(self.listener.interrupt)

    def _report(self) -> None:
        """Write that the engine is alive, how far its jobs are, and its models if they have changed."""
        models, machine, records = self.catalog.statuses(), self.hosts.machine, self.records
        has_news = models != self._reported_models
        now = time.monotonic()
        records.queue.report_progress(
            records.epoch,
            {job_id: made for job_id, run in self._running.items() if (made := run.advance(now)) is not None},
        )
        records.heartbeats.report_engine(
            records.epoch,
            ready=self.catalog.is_ready and self.hosts.is_serving(),
            models=models if has_news else None,
            hosts=self.hosts.statuses(),
            sandbox=machine.sandbox if has_news and machine is not None else None,
        )
        self._reported_models = models

    def _wind_down(self) -> None:
        """Give running segments time to finish, while the jobs' threads put their jobs back.

        Segments that are unfinished then are lost with the hosts; the next engine runs them again.
        """

        def is_any_running() -> bool:
            return any(not run.is_over for run in self._running.values())

        def wait_for_runs(seconds: float, tend: Callable[[], object] = lambda: None) -> None:
            deadline = time.monotonic() + seconds
            while is_any_running() and time.monotonic() < deadline:
                tend()
                self.listener.wait(TICK_SECONDS)

        started = time.monotonic()
        self.records.say_stopping()
        self.hosts.park()
        if self._running:
            _log.info(
                "stopping: waiting for running segments",
                at_most_seconds=self.stop_seconds,
                segments=self.hosts.segments_running(),
                jobs=len(self._running),
            )
        wait_for_runs(self.stop_seconds, self.hosts.tend)
        if is_any_running():
            _log.warning(
                "stopping: segments are given up, and will be run again",
                segments=self.hosts.segments_running(),
                jobs=sum(not run.is_over for run in self._running.values()),
            )
        for run in self._running.values():
            run.cancel()
        self.hosts.close(grace_seconds=0.0 if is_any_running() else HOST_STOP_SECONDS)
        wait_for_runs(PUT_BACK_SECONDS)
        self.records.say_stopping()
        _log.info("engine stopped", seconds=round(time.monotonic() - started, 2))
