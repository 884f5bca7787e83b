"""The engine: the one process of a machine that holds the models and runs the jobs of a data folder.

A loop claims jobs and gives each a thread that calls `detect_video`; their segments share the runner and
the devices. Whatever ends this process, the next one takes up its jobs from their finished parts.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from app.detection.detector import DeviceLost
from app.detection.model_pool import ModelPool, NoRoomForModel
from app.errors import FrameboxError, InternalError
from app.failpoints import fail_point
from app.jobs.hangs import check_hangs, count_hang
from app.jobs.intake import remove_orphans
from app.jobs.job import Job, JobState, Priority, Progress, Waiting
from app.jobs.patience import Patience
from app.jobs.retention import Retention
from app.jobs.source import OpenVideo, open_video
from app.jobs.store import JobStore, LeaseLost
from app.jobs.suspects import SUSPECT_DEATHS, SUSPECTED, UNSUSPECTED, Suspects, check_deaths
from app.metrics import Metrics
from app.pipeline.detect_video import (
    DetectionCancelled,
    DetectionProgress,
    DetectionReport,
    DetectionRequest,
    Observe,
    detect_video,
)
from app.pipeline.pace import FrameMeter, Pace
from app.pipeline.runner import Runner
from app.storage.data_folder import DataFolder
from app.storage.ingest import Ingest
from app.storage.parts import PartStore
from app.storage.space import Ballast, free_bytes, is_disk_full
from app.video.decoder import DecoderPool
from app.wakeups import Listener, Program, Wakeups

TICK_SECONDS = 0.1  # how often the loop looks at the devices; for jobs and cancellations it is woken
HEARTBEAT_SECONDS = 1.0
PROGRESS_SECONDS = 0.5  # a job's progress is written down at most this often
CANCEL_SECONDS = 10.0  # a job's thread ends within this once it is cancelled
NO_ROOM_SECONDS = 5.0  # after the disk refused a write, nothing is tried for so long
RETENTION_SECONDS = 10.0  # between two looks for jobs that need no longer be kept
BALLAST_BYTES = 4 * 1024 * 1024  # more than the database's log ever needs
LOAD_SECONDS = 600.0  # a model that loads for longer hangs
BATCH_TURN = 4  # every so many jobs taken up, a batch job comes first
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine allows itself."""

    running_jobs: int  # of which one is never a batch job's, where there are two or more
    segment_frames: int
    min_free_bytes: int
    stop_seconds: float  # after SIGTERM, running segments have so long to finish
    model_call_seconds: float  # a model that stays in one batch for longer hangs
    engine_deaths: int  # at a job that gets no further; then it ends


class EngineFault(Exception):
    """This process cannot go on; its supervisor starts another, which takes up the jobs."""


@dataclass(slots=True, eq=False)
class _RunningJob:
    job: Job
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    pace: Pace = field(default_factory=Pace)
    progress: DetectionProgress | None = None  # None: not begun


class Engine:
    """Runs jobs until it is told to stop. One a data folder: whoever makes it holds the folder's lock."""

    def __init__(
        self,
        *,
        data: DataFolder,
        store: JobStore,
        ingest: Ingest,
        models: ModelPool,
        default_model: str,
        other_models: Sequence[str],
        decoders: DecoderPool,
        runner: Runner,
        retention: Retention,
        limits: EngineLimits,
        metrics: Metrics,
        meter: FrameMeter,
        wakeups: Wakeups,
    ) -> None:
        self._wakeups = wakeups
        self._listener: Listener | None = None  # the loop's
        self._meter = meter
        self._retention = retention
        self._data = data
        self._store = store
        self._ingest = ingest
        self._models = models
        self._default_model = default_model
        self._other_models = other_models
        self._decoders = decoders
        self._runner = runner
        self._limits = limits
        self._metrics = metrics
        self._stop = threading.Event()
        self._running: dict[str, _RunningJob] = {}
        self._ballast = Ballast(data.ballast, BALLAST_BYTES)
        self._no_claims_before = 0.0  # monotonic seconds; set when the disk refused a write
        self._next_heartbeat = 0.0
        self._next_retention = 0.0
        self._claims = 0
        self._suspects = Suspects(self._trace_parts)
        self._patience = Patience()
        self._device_lost: DeviceLost | None = None  # by a job's thread
        self._epoch = 0
        self._refused: list[dict[str, Any]] = []  # models that could not be loaded at the start
        self._announced: list[Any] = []  # what was last said of the models

    def stop(self) -> None:
        """Ask `run` to return: finish or park the running segments, put the jobs back. Safe in a signal."""
        self._stop.set()
        if self._listener is not None:
            self._listener.interrupt()

    def run(self) -> None:
        """Run jobs until `stop`; ends the process with `EXIT_FAULT` if a device is lost or a model hangs."""
        try:
            with self._decoders, self._models, self._runner:
                if not self._stop.is_set():
                    self._serve_or_give_up()
        finally:
            self._store.close()

    def _serve_or_give_up(self) -> None:
        try:
            self._serve()
        except EngineFault:
            _log.critical("engine gives up; the next one takes up its jobs", exc_info=True)
            sys.stdout.flush()
            # At once, before anything is closed: a segment's thread would wait for the model for ever, and
            # whoever closes waits for the segment. The records need nothing.
            os._exit(EXIT_FAULT)

    def _serve(self) -> None:
        try:
            self._epoch = self._until_room(self._begin_epoch)
            self._sweep()
            self._load_all()
            self._until_room(lambda: self._report_models(ready=True))
        except LeaseLost:
            return
        self._loop()
        self._park()
        self._say_stopping()

    # ---- start

    def _begin_epoch(self) -> int:
        part_traces = {job_id: self._trace_parts(job_id) for job_id in self._store.running()}
        return self._store.begin_epoch(pid=os.getpid(), part_traces=part_traces)

    def _trace_parts(self, job_id: str) -> str:
        return PartStore(self._data.parts(job_id)).trace()

    def _sweep(self) -> None:
        """Remove what jobs that ended no longer need; an engine killed at the wrong moment left it behind."""
        remove_orphans(self._data, self._store)
        for folder in self._data.jobs.iterdir():
            try:
                job = self._store.get(folder.name)
            except FrameboxError:
                continue  # an upload whose record is not written yet: the web side's to keep or to clean
            if job.state.is_final:
                self._data.remove_inputs(job.id)

    def _load_all(self) -> None:
        """Load each model once, to check and to measure it.

        Raises ModelFault if the default one cannot be had, EngineFault if one hangs.
        """
        started = time.monotonic()
        pool = ThreadPoolExecutor(1, "load-models")
        loading = pool.submit(self._load_each)
        try:
            while not wait([loading], TICK_SECONDS).done:
                self._check_devices()
        finally:
            pool.shutdown(wait=False)
        loading.result()
        _log.info(
            "models loaded",
            epoch=self._epoch,
            models=[model["name"] for model in self._models.descriptions()],
            seconds=round(time.monotonic() - started, 2),
        )

    def _load_each(self) -> None:
        with self._models.use(self._default_model):
            pass
        for name in self._other_models:
            try:
                with self._models.use(name):
                    pass
            except FrameboxError as error:
                _log.error("model left out", model=name, code=error.code, detail=error.detail)
                self._refused.append({"name": name, "refused": {"code": error.code, "detail": error.detail}})
        with self._models.use(self._default_model):
            pass  # others may have taken its room

    def _report_models(self, *, ready: bool, seconds_left: Mapping[str, float] | None = None) -> None:
        """Say that the engine lives, and what models there are if that is news."""
        models: list[Any] | None = [*self._models.descriptions(), *self._refused]
        if models == self._announced:
            models = None
        self._store.report_engine(
            self._epoch,
            ready=ready,
            models=models,
            sandbox=None if models is None else self._decoders.sandbox,
            seconds_left=seconds_left,
        )
        self._announced = self._announced if models is None else models

    # ---- the loop

    def _loop(self) -> None:
        with self._wakeups.listen(Program.ENGINE) as self._listener:
            while not self._stop.is_set():
                self._tick()
                self._listener.wait(TICK_SECONDS)

    def _tick(self) -> None:
        self._reap()
        self._check_devices()
        try:
            self._tend_store()
        except sqlite3.Error as error:
            if not is_disk_full(error):
                raise
            _log.warning("no room on disk for the jobs' records", exc_info=True)
            self._stop.wait(NO_ROOM_SECONDS)

    def _tend_store(self) -> None:
        self._pass_on_cancellations()
        self._claim()
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._report_models(ready=True, seconds_left=self._seconds_left(now))
            self._next_heartbeat = now + HEARTBEAT_SECONDS
        if now >= self._next_retention and not self._retention.remove_old():
            self._next_retention = now + RETENTION_SECONDS

    def _seconds_left(self, now: float) -> dict[str, float]:
        """How long each running job will take at its pace, where that can be told."""
        estimates: dict[str, float] = {}
        for job_id, running in self._running.items():
            frames, progress = self._meter.of(job_id), running.progress
            running.pace.note(frames, now)
            if progress is None or progress.frames_total is None:
                continue
            seconds = running.pace.seconds_for(progress.frames_total - progress.frames_resumed - frames)
            if seconds is not None:
                estimates[job_id] = max(0.0, seconds)
        return estimates

    def _claim(self) -> None:
        while len(self._running) < self._limits.running_jobs and not self._stop.is_set():
            if not self._has_room():
                self._store.say_waiting(Waiting.DISK_SPACE)
                return
            crowded = self._models.crowded_models()
            job = None if self._suspects.is_one_alone() else self._take_next(crowded)
            if job is None:
                self._store.say_waiting(None, crowded_models=crowded)
                return
            fail_point("job_claimed")
            self._claims += 1
            self._patience.begun(job.model)
            self._suspects.begin(job)
            self._start(job)

    def _take_next(self, crowded: Collection[str]) -> Job | None:
        """Claim a suspected job first, while none is at work; then whose turn it is."""
        if not self._suspects.is_one_at_work() and self._store.has_queued(deaths=SUSPECT_DEATHS):
            suspect = self._store.claim(self._epoch, without_models=crowded, deaths=SUSPECTED)
            if suspect is not None:
                return suspect
        self._patience.note(self._store.queued_models({*crowded, *self._patience.models}))
        return self._store.claim(
            self._epoch,
            self._whose_turn(),
            without_models=crowded,
            only_model=self._patience.overdue(),
            deaths=UNSUSPECTED,
        )

    def _whose_turn(self) -> Sequence[Priority]:
        """Interactive jobs first, but for every fourth place; and one place no batch job takes."""
        running = [job.job.priority for job in self._running.values()]
        if self._limits.running_jobs > 1 and running.count(Priority.BATCH) >= self._limits.running_jobs - 1:
            return (Priority.INTERACTIVE,)
        is_batch_turn = self._claims % BATCH_TURN == BATCH_TURN - 1
        return tuple(reversed(Priority)) if is_batch_turn else tuple(Priority)

    def _has_room(self) -> bool:
        """Whether a job may begin. What was held back for the records is theirs again before that."""
        if time.monotonic() < self._no_claims_before or self._is_disk_full():
            return False
        return self._ballast.take()

    def _start(self, job: Job) -> None:
        running = _RunningJob(job)
        running.thread = threading.Thread(target=self._run_job, args=(running,), name=f"job-{job.id[:8]}")
        self._running[job.id] = running
        running.thread.start()

    def _reap(self) -> None:
        for job_id, running in list(self._running.items()):
            if running.thread is not None and not running.thread.is_alive():
                del self._running[job_id]
                self._suspects.end(job_id)

    def _pass_on_cancellations(self) -> None:
        for job_id in self._store.cancel_requests(self._epoch):
            if job_id in self._running:
                self._running[job_id].cancel.set()

    def _check_devices(self) -> None:
        fault = self._models.device_fault() or self._device_lost
        if fault is not None:
            raise EngineFault("a device is lost") from fault
        seconds, job_id = self._models.slowest_call()
        if seconds > self._limits.model_call_seconds:
            if job_id is not None:
                self._count_hang(job_id)
                self._excuse_jobs()
            raise EngineFault("a model hangs")
        if self._models.loading_seconds() > LOAD_SECONDS:
            self._excuse_jobs()  # the pool counts how often it is tried
            raise EngineFault("a model hangs while it loads")

    def _count_hang(self, job_id: str) -> None:
        _log.error("a model hangs", job_id=job_id)
        try:
            count_hang(self._data.hangs(job_id))
        except OSError:  # a full disk, or the job is gone: it is not counted
            _log.warning("hang not counted", job_id=job_id, exc_info=True)

    def _excuse_jobs(self) -> None:
        """Let this engine's end be no death that counts at the jobs that it runs."""
        try:
            self._say_stopping()
        except sqlite3.Error:
            _log.warning("the engine's end counts as a death", exc_info=True)

    def _is_disk_full(self) -> bool:
        return free_bytes(self._data.root) < self._limits.min_free_bytes

    def _park(self) -> None:
        """Let running segments finish within their time; the jobs' threads put their jobs back."""
        self._say_stopping()
        self._runner.park()
        self._join_jobs(self._limits.stop_seconds)
        for running in self._running.values():
            running.cancel.set()
        self._join_jobs(CANCEL_SECONDS)

    def _say_stopping(self) -> None:
        try:
            self._store.report_engine(self._epoch, ready=False)
        except sqlite3.Error as error:
            if not is_disk_full(error):
                raise  # else its heartbeat tells soon enough

    def _join_jobs(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for running in self._running.values():
            if running.thread is not None:
                running.thread.join(max(0.0, deadline - time.monotonic()))

    # ---- one job, in its thread

    def _run_job(self, running: _RunningJob) -> None:
        job = running.job
        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(job_id=job.id, request_id=job.request_id):
            try:
                state = self._detect(running)
            except LeaseLost:
                _log.warning("job belongs to another engine")
            else:
                self._metrics.jobs_ended.labels(state).inc()
                _log.info("job ended", state=state, seconds=round(time.monotonic() - started, 3))
            finally:
                self._meter.forget(job.id)
                self._store.close()

    def _detect(self, running: _RunningJob) -> JobState:
        job = running.job
        account = _Account(self._store, running, self._epoch)
        try:
            check_hangs(self._data.hangs(job.id), job.model, call_seconds=self._limits.model_call_seconds)
            check_deaths(job, most=self._limits.engine_deaths)
            with self._models.use(job.model) as model, open_video(job, self._data, self._ingest) as video:
                detect_video(
                    self._request(job, video.path, model.runtime),
                    decoders=self._decoders,
                    detector=model.detector,
                    runner=self._runner,
                    observe=_checking(video, account.observe),
                    cancelled=running.cancel.is_set,
                )
        except DetectionCancelled:
            return self._end_cancelled(job, account)
        except FrameboxError as error:
            _log.warning("job failed", code=error.code, detail=error.detail)
            return self._end(job, JobState.FAILED, account, error)
        except (NoRoomForModel, DeviceLost) as error:
            return self._leave_for_later(job, error)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the job's boundary: it is logged, and the job ends with it
            if is_disk_full(error):
                return self._wait_for_room(job)
            return self._end_by_our_fault(job, account)
        return self._end(job, JobState.SUCCEEDED, account)

    def _request(self, job: Job, video: Path, runtime: str) -> DetectionRequest:
        return DetectionRequest(
            job_id=job.id,
            video=video,
            parts_folder=self._data.parts(job.id),
            document=self._data.document(job.id),
            pts=self._data.pts(job.id),
            options=job.options,
            segment_frames=self._limits.segment_frames,
            runtime=runtime,
            is_urgent=job.priority is Priority.INTERACTIVE,
        )

    # ---- a job's end

    def _end(
        self, job: Job, state: JobState, account: _Account, error: FrameboxError | None = None
    ) -> JobState:
        fail_point("job_done")
        self._until_room(
            lambda: self._store.finish(
                job.id,
                self._epoch,
                state,
                problem=None if error is None else error.to_problem(),
                progress=account.progress,
                report=account.report,
            )
        )
        fail_point("job_ended")
        self._data.remove_inputs(job.id)
        return state

    def _put_back(self, job: Job, waiting: Waiting | None = None) -> JobState:
        self._until_room(lambda: self._store.put_back(job.id, self._epoch, waiting))
        return JobState.QUEUED

    def _leave_for_later(self, job: Job, error: NoRoomForModel | DeviceLost) -> JobState:
        if isinstance(error, NoRoomForModel):
            return self._put_back(job, Waiting.MODEL_MEMORY)
        self._device_lost = error  # the loop ends this process; the next one counts it as a death
        return JobState.RUNNING

    def _until_room(self, write: Callable[[], T]) -> T:
        """Call `write` until the disk has room for it. LeaseLost if the engine stops before that.

        The next engine then takes the job up from its parts: what is not written down has not happened.
        """
        while True:
            try:
                return write()
            except sqlite3.Error as error:
                if not is_disk_full(error):
                    raise
                _log.warning("no room on disk for the jobs' records", exc_info=True)
                if not self._ballast.give() and self._stop.wait(NO_ROOM_SECONDS):
                    raise LeaseLost("the engine stops") from error

    def _end_cancelled(self, job: Job, account: _Account) -> JobState:
        if self._store.get(job.id).cancel_requested:
            return self._end(job, JobState.CANCELLED, account)
        return self._put_back(job)  # parked

    def _wait_for_room(self, job: Job) -> JobState:
        _log.warning("no room on disk; the job waits")
        self._no_claims_before = time.monotonic() + NO_ROOM_SECONDS
        return self._put_back(job, Waiting.DISK_SPACE)

    def _end_by_our_fault(self, job: Job, account: _Account) -> JobState:
        _log.exception("job failed")
        error = InternalError("The job failed for a reason of the service's own; its log tells.")
        return self._end(job, JobState.FAILED, account, error)


def _checking(video: OpenVideo, observe: Observe) -> Observe:
    """`observe`, after a look whether the video is still what it was: after every segment, and at the end."""

    def check_then_observe(progress: DetectionProgress, report: DetectionReport) -> None:
        video.check_unchanged()
        observe(progress, report)

    return check_then_observe


class _Account:
    """What a job's run last said of itself, written down now and then."""

    def __init__(self, store: JobStore, running: _RunningJob, epoch: int) -> None:
        self._store = store
        self._running = running
        self._epoch = epoch
        self._next_write = time.monotonic() + PROGRESS_SECONDS  # what ends before that is written once
        self.progress: Progress | None = None
        self.report: dict[str, Any] | None = None

    def observe(self, progress: DetectionProgress, report: DetectionReport) -> None:
        self._running.progress = progress
        if not progress.segments_done:
            return  # a resumed job goes on showing what it had, until its parts are counted
        self.progress = Progress(
            progress.frames_done,
            progress.frames_total,
            progress.segments_done,
            progress.segments_total,
            progress.frames_missing,
        )
        self.report = report.to_json()
        if time.monotonic() >= self._next_write:
            self._store.update(self._running.job.id, self._epoch, self.progress, self.report)
            self._next_write = time.monotonic() + PROGRESS_SECONDS
