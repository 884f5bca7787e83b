"""One device and the host that serves it: its work, when it must end, and when the next one starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from app.detection.model_facts import ModelFacts
from app.engine.host_process import HostLimits, HostProcess, own_bytes
from app.host.messages import Heartbeat, IndexVideo, RoomLent, RunSegment
from app.jobs.heartbeats import HostStatus
from app.pipeline.runner import IndexItem, IndexTask
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.restarts import pause_seconds
from app.video.results import Cancelled, IndexSummary, WorkCancelled

STEADY_SECONDS = 20.0  # a host that lived for this long did not die at its start

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class SegmentWork:
    """A segment that waits for a host or runs in one."""

    task: SegmentTask
    cancelled: Cancelled
    is_urgent: bool
    future: Future[SegmentOutcome] = field(default_factory=Future)
    frames: int = 0  # reported by its current run
    renewals: int = 0  # of hosts that lacked the memory for it
    is_cancelled: bool = False  # its host has been told

    def begin(self) -> bool:
        """Mark the future as running. False if the job has taken the segment back."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def drop(self) -> None:
        """Settle a waiting segment, whether it was never started or is to be started again."""
        if self.future.cancel():
            self.future.set_running_or_notify_cancel()  # `concurrent.futures.wait` takes it as done only now
        else:
            self.future.set_exception(WorkCancelled())


@dataclass(slots=True, eq=False)
class IndexWork:
    """A video that waits to be indexed or is being indexed."""

    task: IndexTask
    cancelled: Cancelled
    reader: Callable[[IndexItem], None]
    future: Future[IndexSummary] = field(default_factory=Future)
    items_read: int = 0  # that the reader has
    items_found: int = 0  # by the current run
    renewals: int = 0
    is_cancelled: bool = False


Work = SegmentWork | IndexWork


@dataclass(slots=True, eq=False)
class Lease:
    """What a trial has of a host: part of the room for models, or all, while no host runs."""

    is_whole: bool
    ticket: int = 0  # by which the host was asked for room
    lent: RoomLent | None = None  # the host has made that room
    is_wanted_back: bool = False  # a job needs it


@dataclass(slots=True, eq=False)
class Device:
    """One device, and the host that serves it now."""

    name: str | None  # None: the first host reports which devices there are
    process: HostProcess | None = None
    is_down: bool = False  # its host sends no more messages
    is_worn: bool = False  # its host is replaced once it has no work
    lease: Lease | None = None  # for the trial of a model
    without_room: frozenset[str] = frozenset()  # models, as its last heartbeat said
    restarts: int = 0
    early_deaths: int = 0  # in a row, shortly after a start
    started_at: float = 0.0
    next_start: float = 0.0
    models: dict[str, ModelFacts] = field(default_factory=dict)  # that the host keeps for us
    asked: dict[int, str] = field(default_factory=dict)  # models that the host was asked for, by ticket
    work: dict[int, Work] = field(default_factory=dict)  # by ticket

    @property
    def takes_work(self) -> bool:
        is_up = self.process is not None and self.process.ready is not None
        return is_up and not (self.is_down or self.is_worn or self.is_away)

    @property
    def is_away(self) -> bool:
        """Whether its host ends once it has no work, and starts again after a model's trial."""
        return self.lease is not None and self.lease.is_whole

    @property
    def segments_running(self) -> int:
        return sum(isinstance(work, SegmentWork) for work in self.work.values())

    @property
    def heartbeat(self) -> Heartbeat:
        return Heartbeat() if self.process is None else self.process.heartbeat

    def holds(self, task: SegmentTask) -> bool:
        """Return whether the host holds the model of `task`, unchanged since the job began."""
        facts = self.models.get(task.model)
        return facts is not None and facts.identity == task.model_identity

    def send(self, message: object) -> None:
        if self.process is not None:
            self.process.send(message)

    def run(self, ticket: int, work: Work) -> None:
        """Send `work` to the host."""
        self.work[ticket] = work
        work.is_cancelled = False
        if isinstance(work, SegmentWork):
            self.send(RunSegment(ticket, work.task))
        else:
            self.send(IndexVideo(ticket, work.task))

    def status(self) -> HostStatus:
        beat = self.heartbeat
        return HostStatus(
            device=self.name or "",
            pid=0 if self.process is None else self.process.pid,
            ready=self.takes_work,
            memory_bytes=0 if self.process is None else own_bytes(self.process.pid),
            segments=self.segments_running,
            frames=beat.frames,
            busy_seconds=round(beat.busy_seconds, 3),
            out_of_memory_count=beat.out_of_memory_count,
            model_fault_count=beat.model_fault_count,
            dropped_box_count=beat.dropped_box_count,
            restarts=self.restarts,
        )

    # ---- starting and ending hosts

    def serve_by(self, process: HostProcess) -> None:
        """Take `process`, which is about to start, as the host."""
        self.process, self.started_at = process, time.monotonic()
        self.is_down = self.is_worn = False

    def why_to_end(self, limits: HostLimits) -> str | None:
        """Return why the host must end, as a constant text; None if it may go on, or there is none."""
        if self.process is None:
            return None
        if self.is_down or self.process.exit_status() is not None:
            return "host died"
        fault = self.process.fault(limits)
        if fault is None and not self.work:
            fault = "host renewed" if self.is_worn else "host makes room" if self.is_away else None
        return fault

    def kill_host(self, why: str) -> str | None:
        """Return when the host is gone, with the job whose batch was in a model. Log `why`."""
        if self.process is None:
            return None
        call_job_id = self.process.heartbeat.call_job_id
        self.process.close()
        _log.log(
            logging.INFO if self.is_worn or self.is_away else logging.ERROR,
            why,
            device=self.name,
            pid=self.process.pid,
            exit_status=self.process.exit_status(),
            job_id=call_job_id,
        )
        return call_job_id

    def forget_host(self) -> list[Work]:
        """Return the work of the host that ended, and choose when the next one starts."""
        lasted = time.monotonic() - self.started_at > STEADY_SECONDS
        self.early_deaths = 0 if lasted or self.is_worn or self.is_away else self.early_deaths + 1
        self.next_start = time.monotonic() + pause_seconds(self.early_deaths)
        self.process = None
        self.restarts += 1
        lost = [*self.work.values()]
        self.work.clear()
        self.models.clear()
        self.asked.clear()
        return lost
