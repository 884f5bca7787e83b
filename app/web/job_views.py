"""``/v1/jobs``: list, report, result, events, cancelling and deleting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlencode

from flask import Response, g, request

from app.errors import Busy, JobNotFound
from app.jobs.job import Job, JobState
from app.web.options import RENDERING_OPTIONS, Fault, invalid_options, parse_rendering
from app.web.report import event_id, public_report
from app.web.results import job_headers, json_response, send_end
from app.web.routes import MAX_PAGE_JOBS
from app.web.schemas import JobList
from app.web.service import Service
from app.web.waiting import slot_of

PAGE_JOBS = 50
RETRY_SECONDS = 5  # how long a conversion takes depends on its document's size

PING_SECONDS = 15.0  # below the idle limits of proxies
STREAM_SECONDS = 600.0  # then the client reconnects, so that a worker can be replaced
RETRY_MILLISECONDS = 3000
_STOP_CHECK_SECONDS = 1.0  # how often a stream checks whether its worker is stopping


class JobViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def list_jobs(self) -> Response:
        """Return a page of jobs, newest first, and the address of the next page."""
        faults = _unknown_parameters("limit", "state", "cursor")
        limit_text, state = request.args.get("limit", str(PAGE_JOBS)), request.args.get("state")
        if not (limit_text.isascii() and limit_text.isdigit() and 1 <= int(limit_text[:9]) <= MAX_PAGE_JOBS):
            faults.append(Fault("limit", "is out of range", f"a whole number from 1 to {MAX_PAGE_JOBS}"))
        if state is not None and state not in [*JobState]:
            faults.append(Fault("state", "is not a job state", [*JobState]))
        if faults:
            raise invalid_options(faults)
        jobs = self._service.store.list(
            owner=g.owner,
            state=JobState(state) if state else None,
            limit=(limit := int(limit_text)) + 1,
            before=request.args.get("cursor"),
        )
        page, now = jobs[:limit], time.time()
        following = None
        if len(jobs) > limit:
            query = {"limit": limit, "cursor": page[-1].id} | ({"state": state} if state else {})
            following = f"/v1/jobs?{urlencode(query)}"
        return json_response(JobList(jobs=[public_report(job, now=now) for job in page], next=following))

    def get_job(self, job_id: str) -> Response:
        job = self._service.store.get(job_id, owner=g.owner)
        return json_response(public_report(job, now=time.time()), headers=job_headers(job))

    def remove_job(self, job_id: str) -> Response:
        """Cancel an active job (202), or delete a finished one with its files (204)."""
        job = self._service.store.get(job_id, owner=g.owner)
        if job.state.is_final:
            self._service.store.delete(job_id, owner=g.owner)
            self._service.folder.remove_job(job_id)
            return Response(status=204)
        job = self._service.store.request_cancel(job_id, owner=g.owner)
        if job.state is JobState.CANCELLED:  # it had not begun: no engine cleans up after it
            self._service.folder.remove_inputs(job_id)
        return json_response(public_report(job, now=time.time()), 202, job_headers(job))

    def get_result(self, job_id: str) -> Response:
        faults = _unknown_parameters(*RENDERING_OPTIONS)
        rendering = parse_rendering(request.args.get("format"), request.args.get("times"), faults)
        if faults:
            raise invalid_options(faults)
        job = self._service.store.get(job_id, owner=g.owner)
        if rendering.is_document:
            return send_end(job, rendering, self._service)
        with slot_of(self._service.rendering_slots) as has_slot:
            if not has_slot:
                raise Busy("Other documents are being converted.", {"retry_after_seconds": RETRY_SECONDS})
            return send_end(job, rendering, self._service)

    def follow_job(self, job_id: str) -> Response:
        """Stream the report whenever it changes; 204 to a client that has already seen the job's end."""
        job = self._service.store.get(job_id, owner=g.owner)
        seen = request.headers.get("Last-Event-ID")
        if job.state.is_final and seen == event_id(job):
            return Response(status=204)
        response = Response(self._events(job, seen), mimetype="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        return response

    def _events(self, watched: Job, seen: str | None) -> Iterator[bytes]:
        """Yield events until the job has ended, the stream is old or the worker stops.

        `seen` is the id of the client's last event.
        """
        yield b"retry: %d\n\n" % RETRY_MILLISECONDS
        end, stopping = time.monotonic() + STREAM_SECONDS, self._service.stopping
        with self._service.watcher.watch(watched.id, owner=watched.owner) as watch:
            while time.monotonic() < end and not stopping.is_set():
                job, ping_at = None, min(end, time.monotonic() + PING_SECONDS)
                try:
                    while job is None and (left := ping_at - time.monotonic()) > 0 and not stopping.is_set():
                        job = watch.next_change(min(left, _STOP_CHECK_SECONDS))
                except JobNotFound:
                    yield b"event: deleted\ndata: {}\n\n"
                    return
                if job is None:
                    yield b": ping\n\n"
                    continue
                if event_id(job) != seen:
                    kind = b"end" if job.state.is_final else b"progress"
                    data = public_report(job, now=time.time()).model_dump_json().encode()
                    yield b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id(job).encode(), kind, data)
                if job.state.is_final:
                    return


def _unknown_parameters(*known: str) -> list[Fault]:
    return [
        Fault(name, "is not a parameter of this route", sorted(known))
        for name in request.args
        if name not in known
    ]
