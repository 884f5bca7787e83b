"""One running job, in a thread of its own: from the claim to the record of its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from app.detection.model_facts import NoRoomForModel
from app.engine.catalog import Catalog
from app.engine.host_pool import HostPool
from app.engine.records import Records
from app.engine.turns import why_failed
from app.errors import FrameboxError, InternalError
from app.failpoints import fail_point
from app.jobs.job import Advance, Job, JobState, Priority, Progress, Waiting
from app.jobs.queue import LeaseLost
from app.jobs.source import OpenVideo, open_video
from app.pipeline.detect_video import (
    DetectionCancelled,
    DetectionProgress,
    DetectionRequest,
    Observe,
    detect_video,
)
from app.pipeline.pace import FrameMeter, Pace
from app.pipeline.report import DetectionReport
from app.pipeline.runner import ModelChanged, WorkCancelled
from app.storage.ingest import Ingest
from app.storage.space import is_disk_full

PROGRESS_SECONDS = 0.5  # a job's progress is written down at most this often

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobRules:
    """What all jobs have in common."""

    segment_frames: int
    most_deaths: int  # at a job that gets no further; then it ends
    call_seconds: float  # a model that stays in one batch for longer hangs
    count_end: Callable[[JobState], None]  # also of a job that goes back to the queue


class JobRun:
    """A job while it runs. `start` begins it; it has ended once `is_over`."""

    def __init__(
        self,
        job: Job,
        records: Records,
        hosts: HostPool,
        catalog: Catalog,
        ingest: Ingest,
        rules: JobRules,
        meter: FrameMeter,
    ) -> None:
        self.job = job
        self._records = records
        self._hosts = hosts
        self._catalog = catalog
        self._ingest = ingest
        self._rules = rules
        self._meter = meter
        self._cancel = threading.Event()
        self._pace = Pace()
        self._thread: threading.Thread | None = None
        self._next_write = time.monotonic() + PROGRESS_SECONDS
        self._found: DetectionProgress | None = None  # None: not begun
        self._progress: Progress | None = None
        self._report: DetectionReport | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """`on_end` is called when it has ended, or is back in the queue."""
        self._thread = threading.Thread(target=self._run, args=(on_end,), name=f"job-{self.job.id[:8]}")
        self._thread.start()

    def cancel(self) -> None:
        """Ask for its end: as cancelled, if that was asked for, else back to the queue."""
        self._cancel.set()

    @property
    def is_over(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def advance(self, now: float) -> Advance | None:
        """Return how far it is, unfinished segments included; None before it begins. `now`: monotonic."""
        frames, found = self._meter.of(self.job.id), self._found
        self._pace.note(frames, now)
        if found is None:
            return None
        reached, total = found.frames_resumed + frames, found.frames_total
        seconds = None if total is None else self._pace.seconds_for(max(0, total - reached))
        return Advance(reached, total, found.segments_total, seconds)

    # ---- in its thread

    def _run(self, on_end: Callable[[], None]) -> None:
        job, started = self.job, time.monotonic()
        with structlog.contextvars.bound_contextvars(job_id=job.id, request_id=job.request_id):
            try:
                state = self._detect()
            except LeaseLost:
                _log.warning("job belongs to another engine")
            else:
                self._rules.count_end(state)
                _log.info("job ended", state=state, seconds=round(time.monotonic() - started, 3))
            finally:
                self._meter.forget(job.id)
                self._records.database.release()
                on_end()

    def _detect(self) -> JobState:
        try:
            self._check_past()
            self._detect_with_model()
        except DetectionCancelled:
            if self.job.id in self._records.queue.cancel_requests(self._records.epoch):
                return self._end(JobState.CANCELLED)
            return self._put_back()
        except NoRoomForModel:
            return self._put_back(Waiting.MODEL_MEMORY)
        except ModelChanged:
            _log.warning("the model has changed; the job begins anew", model=self.job.model)
            return self._put_back()
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the job's boundary: it is logged, and the job ends with it
            return self._end_by(error)
        return self._end(JobState.SUCCEEDED)

    def _end_by(self, error: Exception) -> JobState:
        if isinstance(error, FrameboxError):
            _log.warning("job failed", code=error.code, detail=error.detail)
            return self._end(JobState.FAILED, error)
        if is_disk_full(error):
            _log.warning("no room on disk; the job waits")
            self._records.note_full_disk()
            return self._put_back(Waiting.DISK_SPACE)
        _log.error("job failed", exc_info=error)
        reason = InternalError("The job failed because of an internal fault; see the service's log.")
        return self._end(JobState.FAILED, reason)

    def _check_past(self) -> None:
        """Raise why the job is not tried any more, if it is not."""
        rules = self._rules
        reason = why_failed(self.job, most_deaths=rules.most_deaths, call_seconds=rules.call_seconds)
        if reason is not None:
            raise reason

    def _detect_with_model(self) -> None:
        job, data = self.job, self._records.data
        try:
            with (
                self._catalog.use(job.model, self._cancel.is_set) as model,
                open_video(job, data, self._ingest) as video,
            ):
                detect_video(
                    DetectionRequest(
                        job_id=job.id,
                        video=video.path,
                        parts_folder=data.parts(job.id),
                        document=data.document(job.id),
                        pts=data.pts(job.id),
                        options=job.options,
                        segment_frames=self._rules.segment_frames,
                        is_urgent=job.priority is Priority.INTERACTIVE,
                    ),
                    model=model,
                    runner=self._hosts,
                    observe=_checking(video, self._observe),
                    cancelled=self._cancel.is_set,
                )
        except WorkCancelled as error:
            raise DetectionCancelled from error

    def _observe(self, progress: DetectionProgress, report: DetectionReport) -> None:
        self._found = progress
        if not progress.segments_done:
            return  # a resumed job goes on showing what it had, until its parts are counted
        self._progress = Progress(
            progress.frames_done,
            progress.frames_total,
            progress.segments_done,
            progress.segments_total,
            progress.frames_missing,
        )
        self._report = report
        if time.monotonic() >= self._next_write:
            self._records.queue.update(self.job.id, self._records.epoch, self._progress, self._report)
            self._next_write = time.monotonic() + PROGRESS_SECONDS

    def _end(self, state: JobState, error: FrameboxError | None = None) -> JobState:
        fail_point("job_done")
        records = self._records
        records.until_room(
            lambda: records.queue.finish(
                self.job.id,
                records.epoch,
                state,
                problem=None if error is None else error.to_problem(),
                progress=self._progress,
                report=self._report,
            )
        )
        fail_point("job_ended")
        records.data.remove_inputs(self.job.id)
        return state

    def _put_back(self, waiting: Waiting | None = None) -> JobState:
        records = self._records
        records.until_room(lambda: records.queue.put_back(self.job.id, records.epoch, waiting))
        return JobState.QUEUED


def _checking(video: OpenVideo, observe: Observe) -> Observe:
    """`observe`, after a look whether the video is still what it was: after every segment, and at the end."""

    def check_then_observe(progress: DetectionProgress, report: DetectionReport) -> None:
        video.check_unchanged()
        observe(progress, report)

    return check_then_observe
