"""``/v1/jobs/{id}/events``: a job's progress as server-sent events."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Response, g, request

from app.errors import JobNotFound
from app.jobs.job import Job
from app.jobs.report import event_id, public_report
from app.jobs.watcher import JobWatch
from app.web.service import Service

PING_SECONDS = 15.0  # below the idle limits of proxies
STREAM_SECONDS = 600.0  # then the client comes back, and a worker can be replaced
RETRY_MILLISECONDS = 3000
_GLANCE_SECONDS = 1.0  # how often a stream looks whether its worker is to stop


class EventViews:
    def __init__(self, service: Service, *, ping_seconds: float = PING_SECONDS) -> None:
        self._service = service
        self._ping_seconds = ping_seconds

    def stream(self, job_id: str) -> Response:
        """The report whenever it changes. 204 to a client that has already seen the job's end."""
        job = self._service.store.get(job_id, owner=g.owner)
        seen = request.headers.get("Last-Event-ID")
        if job.state.is_final and seen == event_id(job):
            return Response(status=204)
        response = Response(self._events(job, seen), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        return response

    def _events(self, watched: Job, seen: str | None) -> Iterator[bytes]:
        """Yield events until the job has ended or the stream is old. `seen`: the last event's id."""
        yield b"retry: %d\n\n" % RETRY_MILLISECONDS
        end = time.monotonic() + STREAM_SECONDS
        with self._service.watcher.watch(watched.id, owner=watched.owner) as watch:
            while time.monotonic() < end and not self._service.stopping.is_set():
                try:
                    job = self._next_change(watch, min(end, time.monotonic() + self._ping_seconds))
                except JobNotFound:
                    yield b"event: deleted\ndata: {}\n\n"
                    return
                if job is None:
                    yield b": ping\n\n"
                elif event_id(job) != seen:
                    yield _event(job)
                if job is not None and job.state.is_final:
                    return

    def _next_change(self, watch: JobWatch, deadline: float) -> Job | None:
        """The job when it has changed; None at `deadline`, or when the worker is to stop."""
        while (left := deadline - time.monotonic()) > 0 and not self._service.stopping.is_set():
            job = watch.next_change(min(left, _GLANCE_SECONDS))
            if job is not None:
                return job
        return None


def _event(job: Job) -> bytes:
    kind = "end" if job.state.is_final else "progress"
    data = public_report(job, now=time.time()).model_dump_json().encode()
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id(job).encode(), kind.encode(), data)
