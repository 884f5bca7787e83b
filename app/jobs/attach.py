"""Do we have this already? The job, if any, that answers a request instead of a new one.

A job answers a request with its Idempotency-Key, or one that asks the same question about the same video, if
the request may attach. This is the only place that decides it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from app.errors import IdempotencyConflict
from app.jobs.job import Job, JobRequest, JobState, VideoSource
from app.jobs.rows import SELECT_JOB, job_of_row
from app.pipeline.options import DetectionOptions

Execute = Callable[[str, Mapping[str, Any]], sqlite3.Cursor]

_SERVER_FAULT = 500  # a problem with at least this status is the service's fault: a new attempt may succeed

# The newest matching job: one lookup in the index jobs_by_answer among the jobs that ran this version of the
# model, one among those whose version is not known yet. A queued job runs with the version of its time.
_MATCHING = (
    "owner = :owner AND content_key = :content_key AND question = :question "
    "AND cancel_requested = 0 AND state IN ('queued', 'running', 'succeeded')"
)
_SAME_QUESTION = f"""
{SELECT_JOB} WHERE sequence = (SELECT max(sequence) FROM (
    SELECT * FROM (
        SELECT sequence FROM jobs WHERE {_MATCHING} AND model_sha256 = :model_sha256
        ORDER BY sequence DESC LIMIT 1
    ) UNION ALL SELECT * FROM (
        SELECT sequence FROM jobs WHERE {_MATCHING} AND model_sha256 IS NULL
        AND (state = 'queued' OR :model_sha256 IS NOT NULL) ORDER BY sequence DESC LIMIT 1
    )
))
"""  # noqa: S608 - constants
_SAME_KEY = f"{SELECT_JOB} WHERE id = (SELECT job_id FROM keys WHERE owner = :owner AND key = :key)"  # noqa: S608


def question(request: JobRequest) -> str:
    """Return a text that is equal for requests that ask the same of the same model, whatever its version."""
    return orjson.dumps([request.model, _decisive(request.options).model_dump(mode="json")]).decode()


def answering_job(execute: Execute, request: JobRequest, source: VideoSource, *, is_read: bool) -> Job | None:
    """Return the job that answers `request` for the video `source`; None if the request needs its own.

    `is_read` is false before the video has arrived. Then `source` is what the client claims about it, unknown
    members are None, and only the key can find a job. Raises IdempotencyConflict if the key was used for
    another request. Takes the same time however many jobs there are.
    """
    if request.idempotency_key is not None:
        row = execute(_SAME_KEY, {"owner": request.owner, "key": request.idempotency_key}).fetchone()
        job = None if row is None else job_of_row(row)
        if job is not None:
            _check_same_request(job, request, source)
            # One that was cancelled, or failed by the service's fault, may be tried again.
            is_cancelled = job.cancel_requested or job.state is JobState.CANCELLED
            status = int((job.problem or {}).get("status", 500)) if job.state is JobState.FAILED else 0
            if not is_cancelled and status < _SERVER_FAULT:
                return job
    if not (is_read and request.may_attach) or source.content_key is None:
        return None
    values = {
        "owner": request.owner,
        "content_key": source.content_key,
        "question": question(request),
        "model_sha256": request.model_sha256,
    }
    row = execute(_SAME_QUESTION, values).fetchone()
    return None if row is None else job_of_row(row)


def _check_same_request(job: Job, request: JobRequest, source: VideoSource) -> None:
    """Raise IdempotencyConflict, naming what differs. What is unknown of `source` counts as equal."""
    is_different = {
        "model": request.model != job.model,
        "options": _decisive(request.options) != _decisive(job.options),
        "length": source.size_bytes not in (None, job.source.size_bytes),
        "content": source.claim not in (None, job.source.claim),
    }
    differs = [name for name, is_other in is_different.items() if is_other]
    if differs:
        raise IdempotencyConflict(
            f"The Idempotency-Key was used for another request; {', '.join(differs)} differ.",
            {"differs": differs, "job_id": job.id},
        )


def _decisive(options: DetectionOptions) -> DetectionOptions:
    """Return the options without the name of the model, which is compared once resolved."""
    return options.model_copy(update={"model": None})
