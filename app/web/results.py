"""A job's document on its way out: sent by the kernel, through nginx or without it.

nginx compresses for clients that accept it. What goes out then is another representation of the document
(RFC 9110, 8.8.3.3; RFC 9530): it has no ranges, a weak ETag, and no digest but that of what it unpacks to.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import orjson
from flask import Response, request, send_file
from pydantic import BaseModel

from app.errors import JobWasCancelled, PreconditionFailed, ResultNotReady
from app.jobs.job import Job, JobState
from app.jobs.report import job_links
from app.pipeline.formats import MEDIA_TYPES
from app.pipeline.options import DocumentFormat, Rendering
from app.web.forms import Form
from app.web.problems import problem_response
from app.web.service import Service

ACCEL_HEADER = "Framebox-Accel"  # set by nginx alone, which takes it from every client
ACCEL_PREFIX = "/_results/"  # nginx's internal location of the jobs' folders
COMPRESSED_PREFIX = "/_compressed/"  # the same, through gzip
COMPRESS_FROM_BYTES = 64 * 1024  # below, less is gained than a length and ranges are worth


def send_end(job: Job, rendering: Rendering, service: Service) -> Response:
    """Answer with what a job has come to: its document, or why there is none.

    Raises ResultNotReady while it runs, JobWasCancelled if it was.
    """
    if job.state is JobState.FAILED and job.problem is not None:
        return problem_response({**job.problem, "instance": job_links(job).self}, job_headers(job))
    if job.state is JobState.CANCELLED:
        raise JobWasCancelled(f"Job {job.id} was cancelled.", {"instance": job_links(job).self})
    if job.state is not JobState.SUCCEEDED:
        raise ResultNotReady(
            f"Job {job.id} is {job.state}.",
            {"state": job.state, "instance": job_links(job).self, "retry_after_seconds": 1},
        )
    return _send_document(job, rendering, service)


def job_headers(job: Job) -> dict[str, str]:
    """The headers that tell of a job in any answer that concerns it."""
    headers = {
        "Framebox-Job": job.id,
        "Link": f'<{job_links(job).self}>; rel="describedby"; type="application/json"',
    }
    completeness = None if job.report is None else job.report.completeness
    if job.state is JobState.SUCCEEDED and completeness is not None:
        headers["Framebox-Frames"] = str(completeness.frames_analysed)
        headers["Framebox-Complete"] = "true" if completeness.complete else "false"
    return headers


def _send_document(job: Job, rendering: Rendering, service: Service) -> Response:
    form = service.forms.get(job, rendering)
    media_type = MEDIA_TYPES[rendering.format]
    digest = f"sha-256=:{base64.b64encode(bytes.fromhex(form.sha256)).decode()}:"
    headers = job_headers(job) | {
        "Cache-Control": "private, no-cache",
        "Unencoded-Digest": digest,
        "Content-Disposition": f'inline; filename="{job.id}.{_suffix(rendering)}"',
    }
    is_through_nginx = ACCEL_HEADER in request.headers
    varies = is_through_nginx and service.limits.compress and _size_bytes(form) >= COMPRESS_FROM_BYTES
    if varies:
        headers["Vary"] = "Accept-Encoding"
    if varies and _wants_gzip():
        response = _hand_to_nginx(form, media_type, service.folder.jobs, is_compressed=True)
    else:
        headers["Repr-Digest"] = digest
        response = (
            _hand_to_nginx(form, media_type, service.folder.jobs, is_compressed=False)
            if is_through_nginx
            else send_file(form.path, mimetype=media_type, etag=form.sha256, conditional=True)
        )
    if response.status_code == 412:
        response.close()
        raise PreconditionFailed("The document is not the one that the request is about.")
    response.headers.update(headers)
    return response


def _hand_to_nginx(form: Form, media_type: str, root: Path, *, is_compressed: bool) -> Response:
    """nginx sends the file, whole or by ranges; whether the client has it already is for us to say."""
    response = Response(mimetype=media_type)
    response.automatically_set_content_length = False  # nginx knows it, or nobody does
    response.headers["Content-Type"] = media_type
    response.set_etag(form.sha256, weak=is_compressed)
    if request.method in ("GET", "HEAD"):
        response.make_conditional(request.environ)
    if response.status_code != 200:
        return response
    if is_compressed and request.method == "HEAD":  # nginx compresses no HEAD: it would tell the wrong length
        response.headers["Content-Encoding"] = "gzip"
        return response
    prefix = COMPRESSED_PREFIX if is_compressed else ACCEL_PREFIX
    response.headers["X-Accel-Redirect"] = f"{prefix}{form.path.relative_to(root)}"
    return response


def _wants_gzip() -> bool:
    """Whether the client takes gzip, and the whole document: who asks for a range resumes the plain one."""
    accepted = dict(request.accept_encodings)
    quality = accepted.get("gzip", 0.0)
    return "Range" not in request.headers and 0.0 < quality >= accepted.get("identity", 0.0)


def _size_bytes(form: Form) -> int:
    """0 if it was deleted meanwhile, which nginx will tell."""
    try:
        return form.path.stat().st_size
    except FileNotFoundError:
        return 0


def _suffix(rendering: Rendering) -> str:
    suffixes = {DocumentFormat.NDJSON: "ndjson", DocumentFormat.CSV: "csv", DocumentFormat.MOT: "txt"}
    suffix = suffixes.get(rendering.format, "json")
    return f"times.{suffix}" if rendering.times else suffix


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with `value` as JSON, not to be cached. It may be, or hold, models of pydantic."""
    response = Response(
        orjson.dumps(value, default=_members), status=status, mimetype="application/json", headers=headers
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _members(value: object) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")
