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

from app.jobs.job import DeliveryState, Job, JobState, Priority, SourceKind, Waiting
from app.pipeline.report import Completeness, DocumentReport, ModelReport, VideoReport, is_absent

# The addresses of what an error may be about, by the member that holds its id: see `problem_of`.
ADDRESSES = {"job_id": "/v1/jobs", "upload_id": "/v1/uploads"}
_STALE_SECONDS = 5.0  # the engine reports every second; if it does not, it is gone and the job stands still


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Timestamp = Annotated[  # in UTC, with milliseconds
    datetime,
    PlainSerializer(lambda time: time.isoformat(timespec="milliseconds").replace("+00:00", "Z")),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProgressReport(Shape):
    """The progress of a job."""

    frames_done: int = Field(description="frames that are analysed and in the answer")
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


class SourceReport(Shape):
    """The source of the video."""

    kind: SourceKind = Field(description="how the video was given")
    name: str | None = Field(description="the client's file name, of a form")
    address: str | None = Field(
        description="of a video that was not uploaded: its path, or its URL without the query"
    )
    bytes: int | None = Field(description="null while the video is being fetched and its size is unknown")
    sha256: Sha256 | None = Field(description="null for a video that is read in place, or has not arrived")
    received_bytes: int | None = Field(description="of a video that is fetched from a URL, so far")


class CallbackReport(Shape):
    """The delivery of a job's end to one address."""

    id: str = Field(description="the header webhook-id, the same in every attempt")
    address: str = Field(description="without the query")
    state: DeliveryState = Field(description="whether the end has been delivered")
    attempts: int = Field(description="made so far")
    last_status: int | None = Field(description="the status of the last answer, if there was one")
    last_error: str | None = Field(description="what went wrong in the last attempt")
    next_attempt_at: Timestamp | None = Field(description="null before the job's end, and if there is none")
    delivered_at: Timestamp | None = Field(description="when the receiver accepted it")


class Links(Shape):
    """The job's addresses, relative to the service's root."""

    self: str = Field(description="of this report")
    events: str = Field(description="of the report whenever it changes, as server-sent events")
    result: str | None = Field(default=None, exclude_if=is_absent, description="once the job has succeeded")


class Problem(BaseModel):
    """A problem document of RFC 9457; further members depend on the code."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="address of the code's entry in /docs/errors")
    title: str = Field(description="the code in words")
    status: int = Field(description="the HTTP status of an answer with this problem")
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


class JobReport(Shape):
    """A job: its state, its video, and whether its answer is complete."""

    id: JobId = Field(description="of the job")
    state: JobState = Field(description="queued → running → succeeded, failed or cancelled")
    created_at: Timestamp = Field(description="when the job was accepted")
    started_at: Timestamp | None = Field(description="when it first started to run")
    finished_at: Timestamp | None = Field(description="when it ended")
    cancel_requested: bool = Field(description="its cancellation was requested")
    priority: Priority = Field(description="who is served first")
    waiting: Waiting | None = Field(description="why a queued job does not start")
    progress: ProgressReport = Field(description="its progress")
    options: dict[str, Any] = Field(description="the options that were given, and the model that runs")
    source: SourceReport = Field(description="where the video comes from")
    video: VideoReport | None = Field(description="null until it is open")
    model: ModelReport | None = Field(description="what analyses the frames; null until it is at work")
    completeness: Completeness | None = Field(description="null until all frames are analysed")
    document: DocumentReport | None = Field(description="the answer's pairs; null until they are written")
    problem: Problem | None = Field(description="why the job failed")
    callbacks: tuple[CallbackReport, ...] = Field(
        description="where the job's end is delivered, and how that went"
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
        created_at=datetime.fromtimestamp(job.created_at, UTC),
        started_at=_time(job.started_at),
        finished_at=_time(job.finished_at),
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
        problem=None if job.problem is None else Problem.model_validate(job.problem),
        callbacks=tuple(
            CallbackReport(
                id=delivery.id,
                address=delivery.shown,
                state=delivery.state,
                attempts=delivery.attempts,
                last_status=delivery.last_status,
                last_error=delivery.last_error,
                next_attempt_at=_time(delivery.next_at),
                delivered_at=_time(delivery.delivered_at),
            )
            for delivery in job.deliveries
        ),
        links=job_links(job),
    )


def callback_body(job: Job) -> bytes:
    """Return the report of an ended job, as a callback carries it: the same bytes in every attempt."""
    report = public_report(job, now=job.finished_at or 0.0)
    return report.model_dump_json(exclude={"callbacks"}).encode()


def job_links(job: Job) -> Links:
    own = f"{ADDRESSES['job_id']}/{job.id}"
    result = f"{own}/result" if job.state is JobState.SUCCEEDED else None
    return Links(self=own, events=f"{own}/events", result=result)


def event_id(job: Job) -> str:
    """Return a text that changes with the job's progress or state; the same in every process."""
    progress = job.progress
    cancelling = "c" if job.cancel_requested else ""
    waiting = f"-{job.waiting}" if job.waiting else ""
    state = f"{job.state}{cancelling}{waiting}"
    received = "" if job.source.received_bytes is None else f"-{job.source.received_bytes}"
    frames = f"{progress.frames_done}-{progress.frames_missing}-{progress.frames_total}"
    if in_progress := _frames_in_progress(job):
        frames += f"-{in_progress}"
    return f"{state}{received}-{progress.segments_done}-{frames}"


def _progress(job: Job, now: float) -> ProgressReport:
    progress, in_progress, estimate = job.progress, _frames_in_progress(job), job.estimate
    fraction = seconds_left = None
    if job.state is JobState.SUCCEEDED:
        fraction = 1.0
    elif progress.frames_total:
        fraction = round(min(1.0, (progress.frames_settled + in_progress) / progress.frames_total), 4)
    if job.state is JobState.RUNNING and estimate is not None:
        age = max(0.0, now - estimate.made_at)
        seconds_left = None if age > _STALE_SECONDS else round(max(0.0, estimate.seconds_left - age), 1)
    return ProgressReport(
        frames_done=progress.frames_done,
        frames_missing=progress.frames_missing,
        frames_in_progress=in_progress,
        frames_total=progress.frames_total,
        segments_done=progress.segments_done,
        segments_total=progress.segments_total,
        fraction=fraction,
        seconds_left=seconds_left,
    )


def _frames_in_progress(job: Job) -> int:
    """Return 0 for a job that does not run: its next run begins unfinished segments anew."""
    return job.progress.frames_in_progress if job.state is JobState.RUNNING else 0


def _time(unix_seconds: float | None) -> datetime | None:
    return None if unix_seconds is None else datetime.fromtimestamp(unix_seconds, UTC)
