"""A job as callers see it: the report of ``GET /v1/jobs/{id}``. The fields' order is the JSON's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app import errors
from app.jobs.job import Delivery, DeliveryState, Job, JobState, Priority, SourceKind, Waiting
from app.pipeline.report import Completeness, DocumentReport, ModelReport, VideoReport, is_absent

_STALE_SECONDS = 5.0  # an engine tells every second; one that does not is gone, and the job stands still


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Timestamp = Annotated[  # in UTC, with milliseconds
    datetime, PlainSerializer(_rfc3339), WithJsonSchema({"type": "string", "format": "date-time"})
]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProgressReport(_Report):
    """How far a job is."""

    frames_done: int = Field(description="frames that are analysed: they are in the answer")
    frames_missing: int = Field(description="frames found to be missing so far: see completeness")
    frames_in_progress: int = Field(
        description="frames of a running job that are analysed in unfinished segments: they are done once "
        "their segment is finished, and analysed again if it is interrupted"
    )
    frames_total: int | None = Field(
        description="frames to be analysed, missing ones too; null until the whole index is known"
    )
    segments_done: int = Field(description="runs of frames that are finished and durable")
    segments_total: int | None = Field(description="null until the whole index is known")
    fraction: float | None = Field(
        ge=0, le=1, description="of the work: done, missing and in progress, of the total"
    )
    seconds_left: float | None = Field(description="at the pace of the last minutes, while the job runs")


class SourceReport(_Report):
    """Where the video comes from."""

    kind: SourceKind = Field(description="how the video was given")
    name: str | None = Field(description="the client's file name, of a form")
    address: str | None = Field(
        description="of a video that was not uploaded: its path, or its URL without the query"
    )
    bytes: int | None = Field(description="null while the video is being fetched, and its size is not known")
    sha256: Sha256 | None = Field(description="null where the video is read where it lies, or not yet there")
    received_bytes: int | None = Field(description="of a video that is fetched from a URL, so far")


class CallbackReport(_Report):
    """How far the telling of a job's end is."""

    id: str = Field(description="the header webhook-id, the same in every attempt")
    address: str = Field(description="without the query")
    state: DeliveryState = Field(description="whether the end has been told")
    attempts: int = Field(description="made so far")
    last_status: int | None = Field(description="what the receiver answered last, if it did")
    last_error: str | None = Field(description="what went wrong in the last attempt")
    next_attempt_at: Timestamp | None = Field(description="null before the job's end, and if there is none")
    delivered_at: Timestamp | None = Field(description="when the receiver took it")


class Links(_Report):
    """The job's addresses, relative to the service's root."""

    self: str = Field(description="of this report")
    events: str = Field(description="of the report whenever it changes, as server-sent events")
    result: str | None = Field(default=None, exclude_if=is_absent, description="once the job has succeeded")


class Problem(BaseModel):
    """A problem document of RFC 9457; further members depend on the code."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="address of what /docs/errors says of the code")
    title: str = Field(description="the code in words")
    status: int = Field(description="the HTTP status, as an answer has it or would have it")
    code: str = Field(description="stable; see /docs/errors")
    detail: str = Field(description="what is wrong here, in words")
    request_id: str | None = Field(
        default=None, exclude_if=is_absent, description="of the request that it answers"
    )
    instance: str | None = Field(
        default=None, exclude_if=is_absent, description="address of the job that it is about"
    )

    @model_serializer(mode="wrap")
    def _extensions_first(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The order in which `FrameboxError.to_problem` has the members."""
        return {**(self.model_extra or {}), **dump(self)}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the fields: pydantic would describe what `_extensions_first` returns, any object."""
        fields = {key: value for key, value in schema.items() if key != "serialization"}
        return handler(fields)


class JobReport(_Report):
    """A job: where it stands, what its video is, whether its answer is complete."""

    id: JobId = Field(description="of the job")
    state: JobState = Field(description="queued → running → succeeded, failed or cancelled")
    created_at: Timestamp = Field(description="when the job was accepted")
    started_at: Timestamp | None = Field(description="when it was first taken up")
    finished_at: Timestamp | None = Field(description="when it ended")
    cancel_requested: bool = Field(description="its end was asked for")
    priority: Priority = Field(description="who is served first")
    waiting: Waiting | None = Field(description="why a queued job is not taken up")
    progress: ProgressReport = Field(description="how far it is")
    options: dict[str, Any] = Field(description="the options that were given, and the model that runs")
    source: SourceReport = Field(description="where the video comes from")
    video: VideoReport | None = Field(description="null until it is open")
    model: ModelReport | None = Field(description="what analyses the frames; null until it is at work")
    completeness: Completeness | None = Field(description="null until all frames are analysed")
    document: DocumentReport | None = Field(description="the answer's pairs; null until they are written")
    problem: Problem | None = Field(description="why the job failed")
    callbacks: tuple[CallbackReport, ...] = Field(
        description="where the job's end is told, and how far that is"
    )
    links: Links = Field(description="its addresses")


def public_report(job: Job, *, now: float) -> JobReport:
    """Return the job's report. `now`, Unix seconds, is for the estimate of a running job.

    Members that the engine has not yet found out are None.
    """
    found = job.report
    return JobReport(
        id=job.id,
        state=job.state,
        created_at=_time(job.created_at),
        started_at=_time_if_any(job.started_at),
        finished_at=_time_if_any(job.finished_at),
        cancel_requested=job.cancel_requested,
        priority=job.priority,
        waiting=job.waiting,
        progress=_progress(job, now),
        options=job.options.model_dump(mode="json", exclude_defaults=True) | {"model": job.model},
        source=SourceReport(
            kind=job.source.kind,
            name=job.source.name,
            address=job.source.address,
            bytes=job.source.size_bytes,
            sha256=job.source.sha256,
            received_bytes=job.source.received_bytes,
        ),
        video=None if found is None else found.video,
        model=None if found is None else found.model,
        completeness=None if found is None else found.completeness,
        document=None if found is None else found.document,
        problem=_problem(job.problem),
        callbacks=tuple(map(_callback, job.deliveries)),
        links=job_links(job),
    )


def callback_body(job: Job) -> bytes:
    """Return the report of an ended job, as a callback carries it: the same bytes in every attempt."""
    report = public_report(job, now=job.finished_at or 0.0)
    return report.model_dump_json(exclude={"callbacks"}).encode()


def job_links(job: Job) -> Links:
    own = f"/v1/jobs/{job.id}"
    result = f"{own}/result" if job.state is JobState.SUCCEEDED else None
    return Links(self=own, events=f"{own}/events", result=result)


def event_id(job: Job) -> str:
    """A text that differs whenever the job's progress or state does; the same in every process."""
    progress = job.progress
    cancelling = "c" if job.cancel_requested else ""
    waiting = f"-{job.waiting}" if job.waiting else ""
    state = f"{job.state}{cancelling}{waiting}"
    received = "" if job.source.received_bytes is None else f"-{job.source.received_bytes}"
    frames = f"{progress.frames_done}-{progress.frames_missing}-{progress.frames_total}"
    if in_progress := _frames_in_progress(job):
        frames += f"-{in_progress}"
    return f"{state}{received}-{progress.segments_done}-{frames}"


def _callback(delivery: Delivery) -> CallbackReport:
    return CallbackReport(
        id=delivery.id,
        address=delivery.shown,
        state=delivery.state,
        attempts=delivery.attempts,
        last_status=delivery.last_status,
        last_error=delivery.last_error,
        next_attempt_at=_time_if_any(delivery.next_at),
        delivered_at=_time_if_any(delivery.delivered_at),
    )


def _progress(job: Job, now: float) -> ProgressReport:
    progress = job.progress
    return ProgressReport(
        frames_done=progress.frames_done,
        frames_missing=progress.frames_missing,
        frames_in_progress=_frames_in_progress(job),
        frames_total=progress.frames_total,
        segments_done=progress.segments_done,
        segments_total=progress.segments_total,
        fraction=_fraction(job),
        seconds_left=_seconds_left(job, now),
    )


def _fraction(job: Job) -> float | None:
    if job.state is JobState.SUCCEEDED:
        return 1.0
    total = job.progress.frames_total
    reached = job.progress.frames_settled + _frames_in_progress(job)
    return round(min(1.0, reached / total), 4) if total else None


def _frames_in_progress(job: Job) -> int:
    """Return 0 for a job that does not run: its next run begins unfinished segments anew."""
    return job.progress.frames_in_progress if job.state is JobState.RUNNING else 0


def _seconds_left(job: Job, now: float) -> float | None:
    if job.state is not JobState.RUNNING or job.estimate is None:
        return None
    age = max(0.0, now - job.estimate.made_at)
    return None if age > _STALE_SECONDS else round(max(0.0, job.estimate.seconds_left - age), 1)


def _problem(found: errors.Problem | None) -> Problem | None:
    return None if found is None else Problem.model_validate(found)


def _time(unix_seconds: float) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)


def _time_if_any(unix_seconds: float | None) -> datetime | None:
    return None if unix_seconds is None else _time(unix_seconds)
