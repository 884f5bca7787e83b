"""The hosts of this machine: work goes out to them in turns, and comes back from others if one dies."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from app.detection.model_facts import ModelFacts
from app.engine.host_process import HostLimits, HostProcess, Spawn
from app.engine.turns import SegmentTurns
from app.host.messages import (
    Advanced,
    Cancel,
    Failed,
    ForgetVideo,
    HostPlan,
    HostReady,
    HostUnusable,
    IndexDone,
    IndexVideo,
    ModelInUse,
    Reason,
    ReleaseModel,
    RunSegment,
    SegmentDone,
    SegmentsFound,
    UseModel,
    VideoFound,
)
from app.jobs.engine_status import HostStatus
from app.pipeline.runner import Cancelled, IndexReader, IndexTask, ModelChanged, WorkCancelled
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.restarts import pause_seconds
from app.video.index_summary import IndexSummary

REPLACED_SECONDS = 30.0  # a host that died is replaced within this, or there is none to be had
MOST_RENEWALS = 2  # of hosts, for one model: beyond it other models are always there first
STEADY_SECONDS = 20.0  # one that lived for so long did not die at its start
POLL_SECONDS = 0.1  # who waits for a model looks so often whether he still wants it

_log = structlog.get_logger(__name__)


class Account(Protocol):
    """Who keeps count of what hosts do."""

    def segment_done(self, task: SegmentTask, done: SegmentDone) -> None: ...

    def host_ended(self, why: str, segments: int) -> None:
        """A host ended; so many segments that it was at are begun again."""
        ...

    def advance(self, job_id: str, frames: int) -> None:
        """So many more frames of a job are dealt with; less than none, if they are lost with a host."""
        ...


class NoHost(Exception):
    """No host can be had on this machine; the text says why, for the administrator."""


@dataclass(frozen=True, slots=True)
class HostDeath:
    """A host that ended, or had to be ended. What it was at is under way again, or waits."""

    why: str  # a constant text
    device: str | None
    job_ids: frozenset[str]  # whose videos it was at, and to whom its end counts
    hung_job_id: str | None  # at whose batch its model gave no answer


@dataclass(slots=True, eq=False)
class _SegmentWork:
    task: SegmentTask
    cancelled: Cancelled
    is_urgent: bool
    future: Future[SegmentOutcome] = field(default_factory=Future)
    frames: int = 0  # that its present run has told of
    renewals: int = 0  # of hosts that had no memory for it
    is_cancelled: bool = False  # the host knows

    @property
    def job_id(self) -> str:
        return self.task.job_id


@dataclass(slots=True, eq=False)
class _IndexWork:
    task: IndexTask
    reader: IndexReader
    cancelled: Cancelled
    future: Future[IndexSummary] = field(default_factory=Future)
    has_video: bool = False
    segments: int = 0  # that the reader has
    told: int = 0  # … that the present run has told of
    renewals: int = 0
    is_cancelled: bool = False

    @property
    def job_id(self) -> str:
        return self.task.job_id


@dataclass(slots=True, eq=False)
class _Place:
    """One device, and the host that serves it now."""

    device: str | None  # None: the first host says what there is
    process: HostProcess | None = None
    is_down: bool = False  # the process says no more
    is_worn: bool = False  # it is replaced once it is at nothing
    restarts: int = 0
    early_deaths: int = 0  # in a row, shortly after a start
    started_at: float = 0.0
    next_start: float = 0.0
    models: dict[str, ModelFacts] = field(default_factory=dict)  # that it keeps for us
    asked: dict[int, str] = field(default_factory=dict)  # models that it was asked for, by ticket
    work: dict[int, _SegmentWork | _IndexWork] = field(default_factory=dict)  # by ticket

    @property
    def takes_work(self) -> bool:
        return (
            self.process is not None and self.process.ready is not None and not (self.is_down or self.is_worn)
        )

    @property
    def segments_running(self) -> int:
        return sum(isinstance(work, _SegmentWork) for work in self.work.values())

    def holds(self, task: SegmentTask) -> bool:
        """Whether the model of `task` is there, and is what it was when the job began."""
        facts = self.models.get(task.model)
        return facts is not None and facts.identity == task.model_identity


class HostPool:
    """Runs segments and indexes videos on hosts. Fulfils Runner. Safe to use from many threads.

    `tend` is called again and again by the one thread that may start hosts: they end with it.
    """

    def __init__(
        self,
        *,
        plan: HostPlan,
        spawn: Spawn,
        limits: HostLimits,
        turns: SegmentTurns[_SegmentWork],
        account: Account,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when `tend` has something to do."""
        self._plan = plan
        self._spawn = spawn
        self._limits = limits
        self._turns = turns
        self._account = account
        self._wake = wake
        self._lock = threading.RLock()
        self._tickets = itertools.count(1)
        self._places = [_Place(None)]
        self._indexes: deque[_IndexWork] = deque()  # that wait for a host
        self._users: Counter[str] = Counter()  # of models
        self._renewals: Counter[str] = Counter()  # of hosts in a row, for a model's want of memory
        self._waiting: dict[str, list[Future[ModelFacts]]] = {}  # for models
        self._is_parked = False
        self._is_closed = False
        self._first: HostReady | None = None
        self._served_at = 0.0  # monotonic seconds; when a host last took work

    # ---- as a Runner

    @property
    def slots(self) -> int:
        return self._turns.slots

    @property
    def decoder_identity(self) -> str:
        """Raises RuntimeError before the first host was ready."""
        return self.machine.decoder_identity

    def index(self, task: IndexTask, reader: IndexReader, cancelled: Cancelled) -> Future[IndexSummary]:
        work = _IndexWork(task, reader, cancelled)
        with self._lock:
            if self._is_closed:
                work.future.set_exception(WorkCancelled())
            else:
                self._indexes.append(work)
                self._hand_out()
        return work.future

    def submit(
        self, task: SegmentTask, cancelled: Cancelled, *, is_urgent: bool = False
    ) -> Future[SegmentOutcome]:
        work = _SegmentWork(task, cancelled, is_urgent)
        with self._lock:
            if self._is_parked:
                _give_up(work)
            else:
                self._turns.add(task.job_id, work, is_urgent=is_urgent)
                self._hand_out()
        return work.future

    def forget(self, video: Path) -> None:
        with self._lock:
            for place in self._places:
                if place.process is not None:
                    place.process.send(ForgetVideo(video))

    def park(self) -> None:
        """Cancel the futures of segments that have not begun, now and later; what runs goes on to its end."""
        with self._lock:
            self._is_parked = True
            for work in self._turns.withdraw():
                _give_up(work)

    # ---- models

    @contextmanager
    def use(self, model: str, cancelled: Cancelled) -> Iterator[ModelFacts]:
        """Yield what is known of `model` once a host holds it; all hosts keep it during the block.

        Raises NoRoomForModel while models in use hold its room; ModelFault if it cannot be loaded;
        InvalidOption for an unknown name; WorkCancelled.
        """
        future: Future[ModelFacts] = Future()
        with self._lock:
            self._users[model] += 1
            self._waiting.setdefault(model, []).append(future)
            self._ask_for(model)
        try:
            while not wait_for([future], POLL_SECONDS).done:
                if cancelled():
                    raise WorkCancelled
            yield future.result()
        finally:
            with self._lock:
                self._stop_using(model, future)

    def crowded_models(self) -> frozenset[str]:
        """The models that no host has room for now, beside those in use."""
        with self._lock:
            beats = [place.process.heartbeat for place in self._places if place.process and place.takes_work]
            crowded = [beat.crowded for beat in beats if beat is not None]
        return frozenset.intersection(*crowded) if crowded else frozenset()

    def loaded_models(self) -> frozenset[str]:
        """The models that some host holds."""
        with self._lock:
            beats = [place.process.heartbeat for place in self._places if place.process]
            kept = [model for place in self._places for model in place.models]
        return frozenset(kept).union(*(beat.loaded for beat in beats if beat is not None))

    def is_idle(self) -> bool:
        """Whether no work is under way or waits, nor anybody for a model."""
        with self._lock:
            return not (self._users or self._indexes or any(place.work for place in self._places))

    @property
    def machine(self) -> HostReady:
        """What the first host found. Raises RuntimeError before that."""
        if self._first is None:
            raise RuntimeError("no host has been ready yet")
        return self._first

    @property
    def has_begun(self) -> bool:
        """Whether a host has been ready."""
        return self._first is not None

    def is_serving(self) -> bool:
        """Whether a host takes work, or did lately: one that is being replaced is soon back."""
        return time.monotonic() - self._served_at < REPLACED_SECONDS

    def statuses(self) -> tuple[HostStatus, ...]:
        with self._lock:
            return tuple(_status(place) for place in self._places)

    def segments_running(self) -> int:
        """How many segments hosts are at."""
        with self._lock:
            return sum(place.segments_running for place in self._places)

    # ---- watching

    def tend(self, *, alone: str | None = None) -> list[HostDeath]:
        """Start and end hosts as need be, and return those that ended. `alone`: see `SegmentTurns`.

        Raises NoHost if the first one says that none can be had.
        """
        with self._lock:
            self._turns.alone = alone
            places = [*self._places]
        deaths = [death for place in places if (death := self._tend(place)) is not None]
        with self._lock:
            self._pass_on_cancellations()
            for work in self._turns.withdraw(self._is_stale):
                if work.future.running() or work.future.set_running_or_notify_cancel():
                    work.future.set_exception(ModelChanged(work.task.model))
            self._hand_out()
            if any(place.takes_work for place in self._places):
                self._served_at = time.monotonic()
        return deaths

    def close(self, *, patience_seconds: float) -> None:
        """End all hosts, in good order if that takes no longer; what is under way ends with WorkCancelled.

        Twice is fine.
        """
        self.park()
        with self._lock:
            self._is_closed = True
            processes = [place.process for place in self._places if place.process is not None]
        for process in processes:
            process.stop()
        deadline = time.monotonic() + patience_seconds
        for process in processes:
            process.wait_for_end(max(0.0, deadline - time.monotonic()))
            process.close()
        for future in self._unsettled():
            future.set_exception(WorkCancelled())

    def _unsettled(self) -> list[Future[Any]]:
        """What somebody waits for; no host will say anything more."""
        with self._lock:
            lost: list[Future[Any]] = [work.future for place in self._places for work in place.work.values()]
            lost += [work.future for work in self._indexes]
            lost += [future for futures in self._waiting.values() for future in futures]
        return [future for future in lost if not future.done()]

    def _tend(self, place: _Place) -> HostDeath | None:
        death = None
        if place.process is not None:
            if place.process.unusable is not None and not self.has_begun:
                raise NoHost(place.process.unusable)
            is_gone = place.is_down or place.process.exit_status() is not None
            why = "host died" if is_gone else place.process.fault(self._limits)
            if why is None and place.is_worn and not place.work:
                why = "host renewed"
            if why is not None:
                death = self._bury(place, why)
        if place.process is None and time.monotonic() >= place.next_start:
            self._start(place)
        return death

    def _start(self, place: _Place) -> None:
        process = HostProcess(replace(self._plan, device=place.device), self._spawn, self._take_message)
        _log.info("host is starting", device=place.device, pid=process.pid)
        with self._lock:
            place.process, place.started_at = process, time.monotonic()
            place.is_down = place.is_worn = False
        process.start()

    def _bury(self, place: _Place, why: str) -> HostDeath:
        """End a host, and put what it was at back where it came from."""
        process = place.process
        assert process is not None  # noqa: S101 - it is that one's end
        beat = process.heartbeat
        process.close()
        _log.log(
            logging.INFO if place.is_worn else logging.ERROR,
            why,
            device=place.device,
            pid=process.pid,
            exit_status=process.exit_status(),
            job_id=None if beat is None else beat.call_job_id,
        )
        with self._lock:
            segments = place.segments_running
            is_excused = why in ("host renewed", "model hangs while it loads")
            death = HostDeath(
                why,
                place.device,
                frozenset() if is_excused else frozenset(work.job_id for work in place.work.values()),
                beat.call_job_id if beat is not None and why == "model hangs" else None,
            )
            lasted = time.monotonic() - place.started_at > STEADY_SECONDS
            place.early_deaths = 0 if lasted or place.is_worn else place.early_deaths + 1
            place.next_start = time.monotonic() + pause_seconds(place.early_deaths)
            place.process = None
            place.restarts += 1
            self._take_back(place)
        self._account.host_ended(why, segments)
        return death

    def _take_back(self, place: _Place) -> None:
        lost, place.work = place.work, {}
        place.models.clear()
        place.asked.clear()
        for work in lost.values():
            self._put_back(work)

    def _put_back(self, work: _SegmentWork | _IndexWork) -> None:
        """Have work that was begun begin anew."""
        if isinstance(work, _IndexWork):
            work.told = 0
            self._indexes.appendleft(work)
            return
        self._turns.end(work.job_id)
        self._account.advance(work.job_id, -work.frames)
        work.frames = 0
        self._turns.put_back(work.job_id, [work], is_urgent=work.is_urgent)

    def _pass_on_cancellations(self) -> None:
        for place in self._places:
            for ticket, work in place.work.items():
                if not work.is_cancelled and work.cancelled() and place.process is not None:
                    work.is_cancelled = True
                    place.process.send(Cancel(ticket))
        for waiting in [work for work in self._indexes if work.cancelled()]:
            self._indexes.remove(waiting)
            waiting.future.set_exception(WorkCancelled())
        for work in self._turns.withdraw(lambda work: work.cancelled()):
            _give_up(work)

    # ---- handing out; the lock is held

    def _hand_out(self) -> None:
        while (work := self._turns.take(lambda work: self._place_for(work.task) is not None)) is not None:
            place = self._place_for(work.task)
            if work.future.running() or work.future.set_running_or_notify_cancel():
                self._send(place, work)
            else:
                self._turns.end(work.job_id)
        while self._indexes and (place := self._place_for(None)) is not None:
            self._send(place, self._indexes.popleft())

    def _place_for(self, task: SegmentTask | None) -> _Place | None:
        """The host with the least to do that holds the model of `task`; None: any."""
        places = [place for place in self._places if place.takes_work and (task is None or place.holds(task))]
        return min(places, key=lambda place: len(place.work), default=None)

    def _is_stale(self, work: _SegmentWork) -> bool:
        """Whether hosts hold another model of the name that this segment is for."""
        holders = [place for place in self._places if work.task.model in place.models]
        return bool(holders) and not any(place.holds(work.task) for place in holders)

    def _send(self, place: _Place | None, work: _SegmentWork | _IndexWork) -> None:
        assert place is not None  # noqa: S101 - it was looked for
        assert place.process is not None  # noqa: S101 - it takes work
        ticket = next(self._tickets)
        place.work[ticket] = work
        work.is_cancelled = False
        message = (
            RunSegment(ticket, work.task) if isinstance(work, _SegmentWork) else IndexVideo(ticket, work.task)
        )
        place.process.send(message)

    def _ask_for(self, model: str) -> None:
        """Have every host that can hold `model` and keep it, and settle who waits for it."""
        for place in self._places:
            if place.takes_work and model not in place.models and model not in place.asked.values():
                assert place.process is not None  # noqa: S101 - it takes work
                ticket = next(self._tickets)
                place.asked[ticket] = model
                place.process.send(UseModel(ticket, model))
        facts = next((place.models[model] for place in self._places if model in place.models), None)
        if facts is not None:
            for future in self._waiting.pop(model, []):
                future.set_result(facts)

    def _stop_using(self, model: str, future: Future[ModelFacts]) -> None:
        with suppress(KeyError, ValueError):
            self._waiting[model].remove(future)
        self._users[model] -= 1
        if self._users[model]:
            return
        del self._users[model]
        for place in self._places:
            if place.models.pop(model, None) is not None and place.process is not None:
                place.process.send(ReleaseModel(model))

    # ---- what hosts say; in their threads

    def _take_message(self, process: HostProcess, message: object) -> None:
        with self._lock:
            place = next((place for place in self._places if place.process is process), None)
            settle = None if place is None else self._understand(place, message)  # else it is buried
        if settle is not None:
            settle()  # outside the lock: whoever waits goes on

    def _understand(self, place: _Place, message: object) -> Callable[[], object] | None:
        match message:
            case HostUnusable():
                _log.error("host cannot be used", detail=message.detail)
            case None:
                place.is_down = True
                self._wake()
            case HostReady():
                self._welcome(place, message)
            case ModelInUse():
                self._keep(place, message)
            case Failed() if message.ticket in place.asked:
                return self._refuse(place, message)
            case Advanced() if message.ticket in place.work:
                work = place.work[message.ticket]
                if isinstance(work, _SegmentWork):
                    work.frames += message.frames
                    self._account.advance(work.job_id, message.frames)
            case VideoFound() | SegmentsFound() if message.ticket in place.work:
                return self._read_on(place.work[message.ticket], message)
            case SegmentDone() | IndexDone() | Failed() if message.ticket in place.work:
                return self._end(place, message)
        return None

    def _welcome(self, place: _Place, ready: HostReady) -> None:
        place.device = ready.device
        _log.info("host ready", device=ready.device, models=len(ready.model_names))
        if self._first is None:
            self._first = ready
            self._places += [_Place(device) for device in ready.devices[1:]]
        for model in sorted(self._users, key=self._renewals.__getitem__, reverse=True):
            self._ask_for(model)  # that for whose sake the host is new first, while there is most room
        self._hand_out()
        self._wake()

    def _keep(self, place: _Place, message: ModelInUse) -> None:
        model = place.asked.pop(message.ticket)
        if not self._users[model]:  # nobody wants it any more
            del self._users[model]
            assert place.process is not None  # noqa: S101 - it speaks
            place.process.send(ReleaseModel(model))
            return
        place.models[model] = message.facts
        self._renewals.pop(model, None)
        self._ask_for(model)
        self._hand_out()

    def _refuse(self, place: _Place, message: Failed) -> Callable[[], None] | None:
        """A host does not hold a model that it was asked for."""
        model = place.asked.pop(message.ticket)
        if message.reason is Reason.WORN and self._renewals[model] < MOST_RENEWALS:
            self._renewals[model] += 1
            place.is_worn = True  # who waits goes on waiting, for the next host
            self._wake()
            return None
        if message.reason is Reason.DEVICE_LOST:
            place.is_down = True
            self._wake()
            return None
        others = [each for each in self._places if model in each.models or model in each.asked.values()]
        if others:
            return None
        futures = self._waiting.pop(model, [])
        lost = self._turns.withdraw(lambda work: work.task.model == model)

        def settle() -> None:
            for future in futures:
                future.set_exception(message.error())
            for work in lost:
                if work.future.running() or work.future.set_running_or_notify_cancel():
                    work.future.set_exception(message.error())

        return settle

    def _read_on(
        self, work: _SegmentWork | _IndexWork, message: VideoFound | SegmentsFound
    ) -> Callable[[], None] | None:
        """Pass on what the reader has not been told by an earlier host."""
        assert isinstance(work, _IndexWork)  # noqa: S101 - a segment's run tells of none
        if isinstance(message, VideoFound):
            is_news, work.has_video = not work.has_video, True
            return (lambda: work.reader.found_video(message.facts)) if is_news else None
        segments: Sequence = message.segments  # type: ignore[type-arg]
        known = max(0, work.segments - work.told)
        work.told += len(segments)
        work.segments = max(work.segments, work.told)
        fresh = segments[known:]
        return (lambda: work.reader.found_segments(fresh)) if fresh else None

    def _end(self, place: _Place, message: SegmentDone | IndexDone | Failed) -> Callable[[], None] | None:
        if isinstance(message, Failed) and message.reason is Reason.DEVICE_LOST:
            place.is_down = True  # its work is taken back when it is buried
            self._wake()
            return None
        work = place.work.pop(message.ticket)
        if isinstance(message, Failed) and message.reason is Reason.WORN and work.renewals < MOST_RENEWALS:
            work.renewals += 1
            if isinstance(work, _SegmentWork):
                self._renewals[work.task.model] += 1
            place.is_worn = True
            self._put_back(work)
            self._wake()
            return None
        if isinstance(work, _SegmentWork):
            self._turns.end(work.job_id)
        self._hand_out()
        if place.is_worn:
            self._wake()

        def settle() -> None:
            match work, message:
                case _SegmentWork(), SegmentDone():
                    self._account.segment_done(work.task, message)
                    work.future.set_result(message.outcome)
                case _IndexWork(), IndexDone():
                    work.future.set_result(message.summary)
                case _, Failed():
                    work.future.set_exception(message.error())

        return settle


def _give_up(work: _SegmentWork) -> None:
    """Let go of a segment that waits: to be begun, or to be begun again."""
    if work.future.cancel():
        work.future.set_running_or_notify_cancel()  # only now `concurrent.futures.wait` takes it as done
    else:
        work.future.set_exception(WorkCancelled())


def _status(place: _Place) -> HostStatus:
    process = place.process
    beat = None if process is None else process.heartbeat
    return HostStatus(
        device=place.device or "",
        pid=0 if process is None else process.pid,
        ready=place.takes_work,
        memory_bytes=0 if process is None else process.own_bytes(),
        segments=place.segments_running,
        frames=0 if beat is None else beat.frames,
        busy_seconds=0.0 if beat is None else round(beat.busy_seconds, 3),
        out_of_memory_count=0 if beat is None else beat.out_of_memory_count,
        model_fault_count=0 if beat is None else beat.model_fault_count,
        dropped_box_count=0 if beat is None else beat.dropped_box_count,
        restarts=place.restarts,
    )
