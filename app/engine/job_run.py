"""One running job, in a thread of its own: from the claim to the record of its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from app.detection.model_facts import NoRoomForModel, UntriedModel
from app.engine.catalog import Catalog
from app.engine.host_pool import HostPool
from app.engine.records import Records
from app.engine.turns import why_failed
from app.errors import FrameboxError, InternalError
from app.failpoints import fail_point
from app.jobs.job import Advance, Job, JobState, Priority, Progress, Waiting
from app.jobs.queue import LeaseLost
from app.jobs.source import OpenVideo, open_video
from app.metrics import Metrics
from app.pipeline.detect_video import DetectionProgress, DetectionRequest, detect_video
from app.pipeline.pace import FrameMeter, Pace
from app.pipeline.report import DetectionReport
from app.pipeline.runner import ModelChanged
from app.storage.ingest import Ingest
from app.storage.space import is_disk_full
from app.video.results import WorkCancelled

PROGRESS_SECONDS = 0.5  # between two writes of a job's progress

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobRules:
    """What all jobs have in common."""

    segment_frames: int
    most_deaths: int  # of engines and hosts, at a job that makes no progress; then it fails
    call_seconds: float  # for one batch in a model


@dataclass(eq=False)
class JobRun:
    """A job while it runs: from `start` until `is_over`."""

    job: Job
    records: Records
    hosts: HostPool
    catalog: Catalog
    ingest: Ingest
    rules: JobRules
    metrics: Metrics
    meter: FrameMeter

    def __post_init__(self) -> None:
        self._cancel = threading.Event()
        self._pace = Pace()
        self._thread: threading.Thread | None = None
        self._next_write = time.monotonic() + PROGRESS_SECONDS
        self._found: DetectionProgress | None = None  # None: not begun
        self._progress: Progress | None = None
        self._report: DetectionReport | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """Start the job's thread, which calls `on_end` when the job has ended or is back in the queue."""
        job = self.job

        def run() -> None:
            started = time.monotonic()
            with structlog.contextvars.bound_contextvars(job_id=job.id, request_id=job.request_id):
                try:
                    state = self._detect_and_record()
                except LeaseLost:
                    _log.warning("job belongs to another engine")
                else:
                    self.metrics.jobs_ended.labels(state).inc()
                    _log.info("job ended", state=state, seconds=round(time.monotonic() - started, 3))
                finally:
                    self.meter.forget(job.id)
                    self.records.database.release()
                    on_end()

        self._thread = threading.Thread(target=run, name=f"job-{job.id[:8]}")
        self._thread.start()

    def cancel(self) -> None:
        """Stop the job. It ends as cancelled if a client asked for that, else it goes back to the queue."""
        self._cancel.set()

    @property
    def is_over(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def advance(self, now: float) -> Advance | None:
        """Return the progress at monotonic time `now`, with unfinished segments; None before it begins."""
        frames, found = self.meter.of(self.job.id), self._found
        self._pace.note(frames, now)
        if found is None:
            return None
        reached, total = found.frames_resumed + frames, found.frames_total
        seconds = None if total is None else self._pace.seconds_for(max(0, total - reached))
        return Advance(reached, total, found.segments_total, seconds)

    # ---- in its thread

    def _detect_and_record(self) -> JobState:
        """Make the document, and record the end of the job or put it back. Return its new state."""
        job, rules, data = self.job, self.rules, self.records.data
        reason = why_failed(job, most_deaths=rules.most_deaths, call_seconds=rules.call_seconds)
        if reason is not None:
            return self._end_with_error(reason)
        try:
            with (
                self.catalog.use(job.model, self._cancel.is_set) as model,
                open_video(job, data, self.ingest) as video,
            ):
                detect_video(
                    DetectionRequest(
                        job_id=job.id,
                        video=video.path,
                        parts_folder=data.parts(job.id),
                        document=data.document(job.id),
                        pts=data.pts(job.id),
                        options=job.options,
                        segment_frames=rules.segment_frames,
                        is_urgent=job.priority is Priority.INTERACTIVE,
                    ),
                    model=model,
                    runner=self.hosts,
                    observe=partial(self._observe, video),
                    cancelled=self._cancel.is_set,
                )
        except WorkCancelled:
            is_wanted = job.id not in self.records.queue.cancel_requests(self.records.epoch)
            return self._put_back() if is_wanted else self._end(JobState.CANCELLED)
        except NoRoomForModel:
            return self._put_back(Waiting.MODEL_MEMORY)
        except (ModelChanged, UntriedModel):
            _log.warning("the model has changed; the job starts again", model=job.model)
            return self._put_back()
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the job's boundary: the error is logged, and ends the job
            return self._end_with_error(error)
        return self._end(JobState.SUCCEEDED)

    def _end_with_error(self, error: Exception) -> JobState:
        if isinstance(error, FrameboxError):
            _log.warning("job failed", code=error.code, detail=error.detail)
            return self._end(JobState.FAILED, error)
        if is_disk_full(error):
            _log.warning("no room on disk; the job waits")
            self.records.note_full_disk()
            return self._put_back(Waiting.DISK_SPACE)
        _log.error("job failed", exc_info=error)
        reason = InternalError("The job failed because of an internal fault; see the service's log.")
        return self._end(JobState.FAILED, reason)

    def _observe(self, video: OpenVideo, progress: DetectionProgress, report: DetectionReport) -> None:
        """Check that the video is unchanged, and write the progress now and then. Called for each segment."""
        video.check_unchanged()
        self._found = progress
        if not progress.segments_done:
            return  # a resumed job keeps showing its earlier progress until its parts are counted
        self._progress = Progress(
            progress.frames_done,
            progress.frames_total,
            progress.segments_done,
            progress.segments_total,
            progress.frames_missing,
        )
        self._report = report
        if time.monotonic() >= self._next_write:
            self.records.queue.update(self.job.id, self.records.epoch, self._progress, self._report)
            self._next_write = time.monotonic() + PROGRESS_SECONDS

    def _end(self, state: JobState, error: FrameboxError | None = None) -> JobState:
        fail_point("job_done")
        records = self.records
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
        records = self.records
        records.until_room(lambda: records.queue.put_back(self.job.id, records.epoch, waiting))
        return JobState.QUEUED
