"""A job as callers see it: the report of ``GET /v1/jobs/{id}``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from app.jobs.job import Delivery, Job, JobState

_STALE_SECONDS = 5.0  # an engine tells every second; one that does not is gone, and the job stands still
_ENGINE_MEMBERS = ("video", "model", "completeness", "document")


def public_report(job: Job, *, now: float) -> dict[str, Any]:
    """Return the job's report, plain JSON values. `now`, Unix seconds, is for the estimate of a running job.

    Members that the engine has not yet found out are null. Times are RFC 3339 in UTC.
    """
    found = job.report or {}
    return {
        "id": job.id,
        "state": job.state,
        "created_at": _rfc3339(job.created_at),
        "started_at": _rfc3339(job.started_at),
        "finished_at": _rfc3339(job.finished_at),
        "cancel_requested": job.cancel_requested,
        "priority": job.priority,
        "waiting": job.waiting,
        "progress": _progress(job, now),
        "options": job.options.model_dump(mode="json", exclude_defaults=True) | {"model": job.model},
        "source": {
            "kind": job.source.kind,
            "name": job.source.name,
            "address": job.source.address,
            "bytes": job.source.size_bytes,
            "sha256": job.source.sha256,
            "received_bytes": job.source.received_bytes,
        },
        **{member: found.get(member) for member in _ENGINE_MEMBERS},
        "problem": job.problem,
        "callbacks": [_callback(delivery) for delivery in job.deliveries],
        "links": job_links(job),
    }


def callback_report(job: Job) -> dict[str, Any]:
    """The report of a job that has ended, as a callback carries it: the same bytes in every attempt."""
    report = public_report(job, now=job.finished_at or 0.0)
    del report["callbacks"]
    return report


def job_links(job: Job) -> dict[str, str]:
    """The job's addresses, relative to the service's root."""
    own = f"/v1/jobs/{job.id}"
    links = {"self": own, "events": f"{own}/events"}
    return links | {"result": f"{own}/result"} if job.state is JobState.SUCCEEDED else links


def event_id(job: Job) -> str:
    """A text that differs whenever the job's progress or state does; the same in every process."""
    progress = job.progress
    cancelling = "c" if job.cancel_requested else ""
    waiting = f"-{job.waiting}" if job.waiting else ""
    state = f"{job.state}{cancelling}{waiting}"
    received = "" if job.source.received_bytes is None else f"-{job.source.received_bytes}"
    frames = f"{progress.frames_done}-{progress.frames_missing}-{progress.frames_total}"
    return f"{state}{received}-{progress.segments_done}-{frames}"


def _callback(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "address": delivery.shown,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "next_attempt_at": _rfc3339(delivery.next_at),
        "delivered_at": _rfc3339(delivery.delivered_at),
    }


def _progress(job: Job, now: float) -> dict[str, Any]:
    progress = job.progress
    return {
        "frames_done": progress.frames_done,
        "frames_missing": progress.frames_missing,
        "frames_total": progress.frames_total,
        "segments_done": progress.segments_done,
        "segments_total": progress.segments_total,
        "fraction": _fraction(job),
        "seconds_left": _seconds_left(job, now),
    }


def _fraction(job: Job) -> float | None:
    if job.state is JobState.SUCCEEDED:
        return 1.0
    total = job.progress.frames_total
    return round(min(1.0, job.progress.frames_settled / total), 4) if total else None


def _seconds_left(job: Job, now: float) -> float | None:
    if job.state is not JobState.RUNNING or job.estimate is None:
        return None
    age = max(0.0, now - job.estimate.made_at)
    return None if age > _STALE_SECONDS else round(max(0.0, job.estimate.seconds_left - age), 1)


def _rfc3339(unix_seconds: float | None) -> str | None:
    if unix_seconds is None:
        return None
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
