"""The hosts of this machine: work goes out to them in turns, and is queued again if a host dies."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from app.detection.model_facts import ModelFacts, NoRoomForModel, Verdict
from app.engine.device import Device, IndexWork, Lease, SegmentWork, Work
from app.engine.host_process import HostLimits, HostProcess, Spawn
from app.engine.turns import SegmentTurns
from app.errors import InternalError, ModelFault
from app.host.messages import (
    HOST_OWN_BYTES,
    Advanced,
    Cancel,
    Failed,
    ForgetVideo,
    Heartbeat,
    HostPlan,
    HostReady,
    IndexDone,
    IndexFound,
    LendRoom,
    ModelInUse,
    Reason,
    ReleaseModel,
    RoomLent,
    SegmentDone,
    Stop,
    TakeRoomBack,
    TrialPlan,
    UseModel,
)
from app.jobs.heartbeats import HostStatus
from app.metrics import Metrics
from app.pipeline.pace import FrameMeter
from app.pipeline.runner import IndexItem, IndexTask, ModelChanged
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.results import Cancelled, IndexSummary, WorkCancelled

REPLACED_SECONDS = 30.0  # a host that died is replaced within this, or none can be started
MOST_RENEWALS = 2  # of hosts, for one model or task: more would not help it
POLL_SECONDS = 0.1  # between two checks whether a model is still wanted

_log = structlog.get_logger(__name__)


class NoHost(Exception):
    """No host can run on this machine; the text tells the administrator why."""


@dataclass(frozen=True, slots=True)
class HostDeath:
    """A host that ended, or had to be ended. Its work has been queued again."""

    why: str  # a constant text
    job_ids: frozenset[str]  # against which it counts
    hung_job_id: str | None  # the only one of them, if its batch hung in the model


class HostPool:
    """Runs segments and indexes videos on hosts. Implements Runner. Thread-safe.

    `tend` must be called repeatedly, by the one thread that starts hosts: hosts end with that thread.
    """

    def __init__(
        self,
        *,
        plan: HostPlan,
        spawn: Spawn,
        limits: HostLimits,
        turns: SegmentTurns[SegmentWork],
        metrics: Metrics,
        meter: FrameMeter,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when `tend` has something to do."""
        self._plan = plan
        self._spawn = spawn
        self._limits = limits
        self._turns = turns
        self._metrics = metrics
        self._meter = meter
        self._wake = wake
        self._lock = threading.RLock()
        self._tickets = itertools.count(1)
        self._devices = [Device(None)]
        self._indexes: deque[IndexWork] = deque()  # that wait for a host
        self._users: Counter[str] = Counter()  # of models
        self._renewals: Counter[str] = Counter()  # of hosts in a row, by the model that they could not load
        self._verdicts: dict[str, Verdict | None] = {}  # the last ones on the models in use
        self._waiting: dict[str, list[Future[ModelFacts]]] = {}  # for models
        self._is_parked = False
        self._is_closed = False
        self.machine: HostReady | None = None  # what the first host reported
        self._served_at = 0.0  # monotonic seconds; when a host last took work

    # ---- as a Runner

    @property
    def slots(self) -> int:
        return self._turns.slots

    @property
    def decoder_identity(self) -> str:
        """Raises RuntimeError before the first host is ready."""
        if self.machine is None:
            raise RuntimeError("no host has been ready yet")
        return self.machine.decoder_identity

    def index(
        self, task: IndexTask, found: Callable[[IndexItem], None], cancelled: Cancelled
    ) -> Future[IndexSummary]:
        work = IndexWork(task, cancelled, found)
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
        work = SegmentWork(task, cancelled, is_urgent)
        with self._lock:
            if self._is_parked:
                work.drop()
            else:
                self._turns.add(task.job_id, work, is_urgent=is_urgent)
                self._hand_out()
        return work.future

    def forget(self, video: Path) -> None:
        with self._lock:
            for device in self._devices:
                device.send(ForgetVideo(video))

    def park(self) -> None:
        """Cancel the futures of segments that have not started, now and later. Running ones may finish."""
        with self._lock:
            self._is_parked = True
            for work in self._turns.withdraw():
                work.drop()

    # ---- models

    @contextmanager
    def use(self, model: str, cancelled: Cancelled, verdict: Verdict | None = None) -> Iterator[ModelFacts]:
        """Yield the facts of `model` once a host holds it; all hosts keep it during the block.

        `verdict` is that of its trial; None if it is built in.

        Raises NoRoomForModel while models in use, or other jobs with an earlier model of that name, take its
        memory, ModelFault if it cannot be loaded, InvalidOption for an unknown name, WorkCancelled.
        """
        future: Future[ModelFacts] = Future()
        with self._lock:
            self._verdicts[model] = verdict
            if self._is_outdated(model):
                raise NoRoomForModel(model)
            self._users[model] += 1
            self._waiting.setdefault(model, []).append(future)
            for device in self._devices:
                if device.lease is not None:
                    device.lease.is_wanted_back |= device.lease.is_whole
            self._ask_for(model)
        try:
            while not wait_for([future], POLL_SECONDS).done:
                if cancelled():
                    raise WorkCancelled
            yield future.result()
        finally:
            with self._lock:
                with suppress(KeyError, ValueError):
                    self._waiting[model].remove(future)
                self._users[model] -= 1
                if not self._users[model]:
                    del self._users[model], self._verdicts[model]
                    for device in self._devices:
                        if device.models.pop(model, None) is not None:
                            device.send(ReleaseModel(model))

    @contextmanager
    def room_for_trial(self, model: str, *, whole: bool, cancelled: Cancelled) -> Iterator[TrialPlan]:
        """Yield the plan of a trial, once a host has lent it the memory that it does not need for its work.

        With `whole`, the host ends for the block, which should not last if `is_room_wanted`. Raises
        WorkCancelled, also if the whole host is asked for while there is work.
        """
        plan = self._plan
        with self._lock:
            if whole and not self.is_idle():
                raise WorkCancelled
            device = min(self._devices, key=lambda each: (not each.takes_work, len(each.work)))
            lease = device.lease = Lease(whole)
            if not whole:
                self._ask_for_room(device, lease)
        self._wake()
        try:
            while lease.lent is None and (not whole or device.process is not None):
                if cancelled():
                    raise WorkCancelled
                time.sleep(POLL_SECONDS)  # the host answers, or ends, in other threads
            plan = replace(plan, device=device.name)
            host_own_bytes = 0 if self.machine is None else self.machine.own_bytes
            if lease.lent is None:
                yield TrialPlan(plan, model, plan.memory_bytes - HOST_OWN_BYTES, host_own_bytes)
            else:
                room_bytes = plan.memory_bytes - max(HOST_OWN_BYTES, lease.lent.kept_bytes)
                kept_device_bytes = lease.lent.kept_device_bytes
                yield TrialPlan(plan, model, room_bytes, host_own_bytes, kept_device_bytes, is_whole=False)
        finally:
            with self._lock:
                device.lease = None
                device.next_start = time.monotonic()
                if device.process is not None:
                    device.send(TakeRoomBack())
            self._wake()

    def is_room_wanted(self) -> bool:
        """Return whether a job has asked for a model for which a trial leaves no room."""
        with self._lock:
            leases = [device.lease for device in self._devices if device.lease is not None]
            return any(lease.is_wanted_back for lease in leases)

    def crowded_models(self) -> frozenset[str]:
        """Return the models that fit into no host beside those in use, or have to replace one of these."""
        with self._lock:
            crowded = [device.heartbeat.crowded for device in self._devices if device.takes_work]
            outdated = frozenset(model for model in self._users if self._is_outdated(model))
        return outdated.union(frozenset.intersection(*crowded) if crowded else ())

    def displaced_models(self) -> frozenset[str]:
        """Return the models that would fit into a host that has lent its room to a trial."""
        with self._lock:
            return frozenset[str]().union(*(device.heartbeat.displaced for device in self._devices))

    def loaded_models(self) -> frozenset[str]:
        """Return the models that some host holds."""
        with self._lock:
            return frozenset[str]().union(
                *({*device.models, *device.heartbeat.loaded} for device in self._devices)
            )

    def is_idle(self) -> bool:
        """Return whether no work is running or waiting, and no model is in use or waited for."""
        with self._lock:
            return not (self._users or self._indexes or any(device.work for device in self._devices))

    def is_serving(self) -> bool:
        """Return whether a host takes work, or did so recently: a replacement is soon ready."""
        return time.monotonic() - self._served_at < REPLACED_SECONDS

    def statuses(self) -> tuple[HostStatus, ...]:
        with self._lock:
            return tuple(device.status() for device in self._devices)

    def segments_running(self) -> int:
        """Return how many segments run in hosts."""
        with self._lock:
            return sum(device.segments_running for device in self._devices)

    # ---- watching hosts

    def tend(self, *, exclusive_job_id: str | None = None) -> list[HostDeath]:
        """Start and end hosts as needed, and return those that ended. See `SegmentTurns` for the argument.

        Raises NoHost if the first host reports that none can run.
        """
        with self._lock:
            self._turns.exclusive_job_id = exclusive_job_id
            devices = [*self._devices]
        deaths = []
        for device in devices:
            if device.process is not None and device.process.unusable is not None and self.machine is None:
                raise NoHost(device.process.unusable)
            if (why := device.why_to_end(self._limits)) is not None:
                deaths.append(self._end_host(device, why))
            is_due = device.process is None and not device.is_away
            if is_due and time.monotonic() >= device.next_start:
                process = HostProcess(replace(self._plan, device=device.name), self._spawn, self._on_message)
                _log.info("host is starting", device=device.name, pid=process.pid)
                with self._lock:
                    device.serve_by(process)
                process.start()
        with self._lock:
            self._drop_unwanted()
            self._hand_out()
            if any(device.takes_work or device.is_away for device in self._devices):
                self._served_at = time.monotonic()
        return deaths

    def _end_host(self, device: Device, why: str) -> HostDeath:
        call_job_id = device.kill_host(why)
        with self._lock:
            loading = next(iter(device.asked.values()), None)  # they load in the order of requests
            segments = device.segments_running
            lost = device.forget_host()
            for work in lost:
                self._put_back(work)
        self._metrics.segments_retried.labels(why).inc(segments)
        if why == "model hangs":
            suspects = {call_job_id} if call_job_id else {work.task.job_id for work in lost}
            return HostDeath(why, frozenset(suspects), call_job_id)
        if why in ("host renewed", "host makes room"):
            return HostDeath(why, frozenset(), None)
        if loading is not None:
            self._on_death(loading, why)
            return HostDeath(why, frozenset(), None)
        return HostDeath(why, frozenset(work.task.job_id for work in lost), None)

    def _on_death(self, model: str, why: str) -> None:
        """Deal with a model that a host was loading when it ended. The next host loads it first."""
        with self._lock:
            self._renewals[model] += 1
            settle = None
            if self._renewals[model] >= MOST_RENEWALS:
                detail = f"Model {model!r} ended the process that loaded it, several times ({why})."
                settle = self._refuse(model, partial(ModelFault, detail))
        if settle is not None:
            settle()

    def close(self, *, grace_seconds: float) -> None:
        """End all hosts, which have `grace_seconds` for it; work ends with WorkCancelled. Idempotent."""
        self.park()
        with self._lock:
            self._is_closed = True
            processes = [device.process for device in self._devices if device.process is not None]
        for process in processes:
            process.send(Stop())
        deadline = time.monotonic() + grace_seconds
        for process in processes:
            process.close(grace_seconds=max(0.0, deadline - time.monotonic()))
        with self._lock:
            lost: list[Future[Any]] = [
                work.future for device in self._devices for work in device.work.values()
            ]
            lost += [work.future for work in self._indexes]
            lost += [future for futures in self._waiting.values() for future in futures]
        for future in lost:
            if not future.done():
                future.set_exception(WorkCancelled())

    def _put_back(self, work: Work) -> None:
        """Queue work again that a host had started."""
        if isinstance(work, IndexWork):
            work.items_found = 0
            self._indexes.appendleft(work)
        else:
            self._meter.add(work.task.job_id, -work.frames)
            work.frames = 0
            self._turns.put_back(work.task.job_id, work, is_urgent=work.is_urgent)

    def _drop_unwanted(self) -> None:
        """Cancel work whose job no longer wants it, and segments whose model has changed. Needs the lock."""
        for device in self._devices:
            for ticket, running in device.work.items():
                if not running.is_cancelled and running.cancelled():
                    running.is_cancelled = True
                    device.send(Cancel(ticket))
        for waiting in [work for work in self._indexes if work.cancelled()]:
            self._indexes.remove(waiting)
            waiting.future.set_exception(WorkCancelled())
        for work in self._turns.withdraw(lambda work: work.cancelled()):
            work.drop()

        def is_stale(work: SegmentWork) -> bool:
            holders = [device for device in self._devices if work.task.model in device.models]
            return bool(holders) and not any(device.holds(work.task) for device in holders)

        for work in self._turns.withdraw(is_stale):
            if work.begin():
                work.future.set_exception(ModelChanged(work.task.model))

    # ---- handing out work; these need the lock

    def _hand_out(self) -> None:
        """Send hosts the segments whose turn it is, and all videos that wait to be indexed."""

        def least_busy(task: SegmentTask | None) -> Device | None:
            able = [each for each in self._devices if each.takes_work and (task is None or each.holds(task))]
            return min(able, key=lambda each: len(each.work), default=None)

        while (work := self._turns.take(lambda work: least_busy(work.task) is not None)) is not None:
            device = least_busy(work.task)
            if device is not None and work.begin():
                device.run(next(self._tickets), work)
            else:
                self._turns.end(work.task.job_id)
        while self._indexes and (device := least_busy(None)) is not None:
            device.run(next(self._tickets), self._indexes.popleft())

    def _ask_for_room(self, device: Device, lease: Lease) -> None:
        lease.ticket = next(self._tickets)
        if device.takes_work:
            device.send(LendRoom(lease.ticket))

    def _is_current(self, model: str, facts: ModelFacts) -> bool:
        """Whether `facts` are those of the last verdict on the model."""
        verdict = self._verdicts.get(model)
        return verdict is None or verdict.facts is None or verdict.facts.identity == facts.identity

    def _is_outdated(self, model: str) -> bool:
        """Whether hosts hold an earlier model of that name, and none the current one."""
        held = [device.models[model] for device in self._devices if model in device.models]
        return bool(held) and not any(self._is_current(model, facts) for facts in held)

    def _ask_for(self, model: str) -> None:
        """Have every host load and keep `model` if it can, and settle the futures that wait for it."""
        for device in self._devices:
            if device.takes_work and model not in device.models and model not in device.asked.values():
                ticket = next(self._tickets)
                device.asked[ticket] = model
                device.send(UseModel(ticket, model, self._verdicts.get(model)))
        held = (device.models[model] for device in self._devices if model in device.models)
        facts = next((facts for facts in held if self._is_current(model, facts)), None)
        if facts is not None:
            for future in self._waiting.pop(model, []):
                future.set_result(facts)

    # ---- messages of hosts; in the threads that receive them

    def _on_message(self, process: HostProcess, message: object) -> None:
        settle: Callable[[], object] | None = None
        with self._lock:
            device = next((device for device in self._devices if device.process is process), None)
            if device is None:  # that host has been ended
                return
            match message:
                case None | Failed(reason=Reason.DEVICE_LOST):  # its work is queued again when it is ended
                    device.is_down = True
                    self._wake()
                case HostReady():
                    device.name = message.device
                    _log.info("host ready", device=message.device, runtime=message.runtime)
                    if self.machine is None:
                        self.machine = message
                        self._devices += [Device(name) for name in message.devices[1:]]
                    if device.lease is not None and not device.lease.is_whole:
                        self._ask_for_room(device, device.lease)
                    # First the model for which the host was renewed, while memory is free.
                    for model in sorted(self._users, key=self._renewals.__getitem__, reverse=True):
                        self._ask_for(model)
                    self._hand_out()
                    self._wake()
                case RoomLent() if device.lease is not None and message.ticket == device.lease.ticket:
                    device.lease.lent = message
                case Heartbeat() if message.crowded | message.displaced != device.without_room:
                    device.without_room = message.crowded | message.displaced
                    self._wake()  # jobs may find room now
                case ModelInUse():
                    settle = self._on_loaded(device, message)
                case Failed() if device.lease is not None and message.ticket == device.lease.ticket:
                    _log.warning("host could not make room for a trial", reason=message.detail)
                    device.is_worn = True  # the next one is asked again
                    self._wake()
                case Failed() if message.ticket in device.asked:
                    settle = self._on_refusal(device, message)
                case Advanced() | IndexFound() if message.ticket in device.work:
                    settle = self._on_progress(device.work[message.ticket], message)
                case SegmentDone() | IndexDone() | Failed() if message.ticket in device.work:
                    settle = self._on_end(device, message)
        if settle is not None:
            settle()  # without the lock: other code runs in it

    def _on_loaded(self, device: Device, message: ModelInUse) -> Callable[[], None] | None:
        model = device.asked.pop(message.ticket)
        self._renewals.pop(model, None)
        if model in self._users and self._is_current(model, message.facts):
            device.models[model] = message.facts
            self._ask_for(model)
            self._hand_out()
            return None
        device.send(ReleaseModel(model))  # it is no longer wanted, or segments still use an earlier one
        return self._refuse(model, partial(NoRoomForModel, model))

    def _on_refusal(self, device: Device, message: Failed) -> Callable[[], None] | None:
        """Deal with a model that a host could not load; the last host to refuse it decides."""
        model = device.asked.pop(message.ticket)
        is_worn = message.reason is Reason.WORN
        if device.lease is not None and (is_worn or message.reason is Reason.NO_ROOM):
            device.lease.is_wanted_back = True
        if is_worn and (device.lease is not None or self._renewals[model] < MOST_RENEWALS):
            self._renewals[model] += device.lease is None
            device.is_worn = True  # the model is asked for again when the next host is ready
            self._wake()
            return None
        return self._refuse(model, message.error)

    def _refuse(self, model: str, error: Callable[[], Exception]) -> Callable[[], None] | None:
        """Return what fails all that waits for `model`; None if another host has it, or may yet."""
        if any(model in each.models or model in each.asked.values() for each in self._devices):
            return None
        futures = self._waiting.pop(model, [])
        lost = self._turns.withdraw(lambda work: work.task.model == model)

        def settle() -> None:
            for future in futures:
                future.set_exception(error())
            for work in lost:
                if work.begin():
                    work.future.set_exception(error())

        return settle

    def _on_progress(self, work: Work, message: Advanced | IndexFound) -> Callable[[], None] | None:
        """Count finished frames; pass on what the reader of an index does not have from an earlier host."""
        match work, message:
            case SegmentWork(), Advanced():
                work.frames += message.frames
                self._meter.add(work.task.job_id, message.frames)
            case IndexWork(), IndexFound():
                work.items_found += 1
                if work.items_found > work.items_read:
                    work.items_read = work.items_found
                    return partial(work.reader, message.item)
        return None

    def _on_end(self, device: Device, message: SegmentDone | IndexDone | Failed) -> Callable[[], None] | None:
        work = device.work.pop(message.ticket)
        is_worn = isinstance(message, Failed) and message.reason is Reason.WORN
        if device.lease is not None and is_worn:
            device.lease.is_wanted_back = True
        if is_worn and (device.lease is not None or work.renewals < MOST_RENEWALS):
            work.renewals += device.lease is None
            if isinstance(work, SegmentWork):
                self._renewals[work.task.model] += 1
            device.is_worn = True
            self._put_back(work)
            self._wake()
            return None
        if isinstance(work, SegmentWork):
            self._turns.end(work.task.job_id)
        self._hand_out()
        if device.is_worn:
            self._wake()

        def settle() -> None:
            match work, message:
                case SegmentWork(), SegmentDone():
                    self._count(work.task, message)
                    work.future.set_result(message.outcome)
                case IndexWork(), IndexDone():
                    work.future.set_result(message.summary)
                case IndexWork(), Failed() if is_worn:  # no model has a part in it
                    work.future.set_exception(InternalError("There is too little memory to index the video."))
                case _, Failed():
                    work.future.set_exception(message.error())

        return settle

    def _count(self, task: SegmentTask, done: SegmentDone) -> None:
        outcome, metrics = done.outcome, self._metrics
        for phase, seconds in done.seconds.items():
            metrics.stage_seconds.labels(phase).inc(seconds)
        metrics.frames_analysed.inc(outcome.frames_decoded)
        metrics.segments.labels("damaged" if outcome.undecodable else "whole").inc()
        _log.info(
            "segment finished",
            job_id=task.job_id,
            segment=task.segment.number,
            frames=outcome.frames_decoded,
            undecodable=sum(gap.frame_count for gap in outcome.undecodable),
            seconds=round(done.wall_seconds, 3),
        )
