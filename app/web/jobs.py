"""``/v1/jobs``: the list, the report, the result, cancelling and deleting."""

from __future__ import annotations

import time
from urllib.parse import urlencode

from flask import Response, g, request

from app.errors import Busy
from app.jobs.job import JobState
from app.jobs.report import public_report
from app.pipeline.options import Rendering
from app.web.options import RENDERING_OPTIONS, Fault, invalid_options, parse_rendering
from app.web.results import job_headers, json_response, send_end
from app.web.routes import MAX_PAGE_JOBS
from app.web.schemas import JobList
from app.web.service import Service

PAGE_JOBS = 50
RETRY_SECONDS = 5  # a conversion takes as long as its document is large


class JobViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def list(self) -> Response:
        """A page of jobs, newest first, and the address of the next one."""
        limit, state, cursor = _page_of_query()
        jobs = self._service.store.list(owner=g.owner, state=state, limit=limit + 1, before=cursor)
        page, now = jobs[:limit], time.time()
        following = None
        if len(jobs) > limit:
            query = {"limit": limit, "cursor": page[-1].id} | ({"state": state} if state else {})
            following = f"/v1/jobs?{urlencode(query)}"
        return json_response(JobList(jobs=[public_report(job, now=now) for job in page], next=following))

    def report(self, job_id: str) -> Response:
        job = self._service.store.get(job_id, owner=g.owner)
        return json_response(public_report(job, now=time.time()), headers=job_headers(job))

    def remove(self, job_id: str) -> Response:
        """Cancel an active job, 202; forget one that has ended, with its files, 204."""
        job = self._service.store.get(job_id, owner=g.owner)
        if job.state.is_final:
            self._service.store.delete(job_id, owner=g.owner)
            self._service.folder.remove_job(job_id)
            return Response(status=204)
        job = self._service.store.request_cancel(job_id, owner=g.owner)
        if job.state is JobState.CANCELLED:  # it had not begun: no engine clears up after it
            self._service.folder.remove_inputs(job_id)
        return json_response(public_report(job, now=time.time()), 202, job_headers(job))

    def result(self, job_id: str) -> Response:
        rendering = _rendering_of_query()
        job = self._service.store.get(job_id, owner=g.owner)
        if rendering.is_document:
            return send_end(job, rendering, self._service)
        with self._service.form_places.take() as has_place:
            if not has_place:
                raise Busy("Other documents are being converted.", {"retry_after_seconds": RETRY_SECONDS})
            return send_end(job, rendering, self._service)


def _rendering_of_query() -> Rendering:
    faults = _unknown_faults({*RENDERING_OPTIONS})
    rendering = parse_rendering(request.args.get("format"), request.args.get("times"), faults)
    if faults:
        raise invalid_options(faults)
    return rendering


def _page_of_query() -> tuple[int, JobState | None, str | None]:
    faults = _unknown_faults({"limit", "state", "cursor"})
    limit, state = request.args.get("limit", str(PAGE_JOBS)), request.args.get("state")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_PAGE_JOBS):
        faults.append(Fault("limit", "is out of range", f"a whole number from 1 to {MAX_PAGE_JOBS}"))
    if state is not None and state not in [*JobState]:
        faults.append(Fault("state", "is not a job state", [*JobState]))
    if faults:
        raise invalid_options(faults)
    return int(limit), JobState(state) if state else None, request.args.get("cursor")


def _unknown_faults(known: set[str]) -> list[Fault]:
    return [
        Fault(name, "is not a parameter of this route", sorted(known))
        for name in request.args
        if name not in known
    ]
