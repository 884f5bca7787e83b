"""When a request needs no job of its own: its key, or an equal video and options, had one before."""

from __future__ import annotations

from app.errors import IdempotencyConflict
from app.jobs.job import Job, JobRequest, JobState, VideoSource
from app.pipeline.options import DetectionOptions

_OWN_FAULT = 500  # a problem of this status or above was the service's: a new attempt may go well


def answers_key(job: Job) -> bool:
    """Whether a job is the answer to later requests with its key.

    A cancelled one, or one that failed by the service's fault, is not: the request may be made again.
    """
    if job.cancel_requested or job.state is JobState.CANCELLED:
        return False
    return job.state is not JobState.FAILED or int((job.problem or {}).get("status", _OWN_FAULT)) < _OWN_FAULT


def check_same_request(
    job: Job, request: JobRequest, *, size_bytes: int | None = None, claim: str | None = None
) -> None:
    """Raise IdempotencyConflict, naming what differs, if `request` is not the one that `job` was made for.

    `claim` is the video's, see `VideoSource`. What is not yet known is None, and taken to be the same.
    """
    pairs = {
        "model": (request.model, job.model),
        "options": (_decisive(request.options), _decisive(job.options)),
        "length": (size_bytes, None if size_bytes is None else job.source.size_bytes),
        "content": (claim, None if claim is None else job.source.claim),
    }
    differs = [name for name, (asked, had) in pairs.items() if asked != had]
    if differs:
        raise IdempotencyConflict(
            f"The Idempotency-Key was used for another request; {', '.join(differs)} differ.",
            {"differs": differs, "instance": f"/v1/jobs/{job.id}"},
        )


def is_equal(job: Job, request: JobRequest, source: VideoSource) -> bool:
    """Whether the job's document is, or will be, the answer to `request`: a failed or cancelled one's is not.

    A queued job runs with the model that the engine has then; of any other the model must be known.
    """
    if job.cancel_requested or job.state in (JobState.FAILED, JobState.CANCELLED):
        return False
    same = job.source.is_same_video(source) and job.model == request.model
    return same and _decisive(job.options) == _decisive(request.options) and _runs_same_model(job, request)


def _runs_same_model(job: Job, request: JobRequest) -> bool:
    if job.report is None:
        return job.state is JobState.QUEUED or request.model_sha256 is not None
    return job.report.model.sha256 == request.model_sha256


def _decisive(options: DetectionOptions) -> DetectionOptions:
    """The options but for the model's name, which stands beside them, resolved."""
    return options.model_copy(update={"model": None})
