"""Send a job's document: by the kernel, through nginx or without it.

nginx compresses for clients that accept it. The compressed answer is another representation of the document
(RFC 9110, 8.8.3.3; RFC 9530): no ranges, a weak ETag, and only the digest of the unpacked document.
"""

from __future__ import annotations

import base64
from pathlib import Path

import orjson
from flask import Response, request, send_file

from app.errors import JobWasCancelled, PreconditionFailed, ResultNotReady
from app.jobs.job import Job, JobState
from app.pipeline.formats import MEDIA_TYPES
from app.pipeline.options import DocumentFormat, Rendering
from app.web.problems import problem_response
from app.web.renderings import RenderedDocument, rendered_document
from app.web.report import job_links
from app.web.service import Service

ACCEL_HEADER = "Framebox-Accel"  # set only by nginx, which removes it from clients' requests
ACCEL_PREFIX = "/_results/"  # nginx's internal location of the jobs' folders
COMPRESSED_PREFIX = "/_compressed/"  # the same, through gzip
COMPRESS_FROM_BYTES = 64 * 1024  # below, a length and ranges are worth more
_SUFFIXES = {DocumentFormat.NDJSON: "ndjson", DocumentFormat.CSV: "csv", DocumentFormat.MOT: "txt"}


def send_end(job: Job, rendering: Rendering, service: Service) -> Response:
    """Answer with a finished job's document, or with the problem of a failed job.

    Raises ResultNotReady while the job runs, JobWasCancelled.
    """
    if job.state is JobState.FAILED and job.problem is not None:
        return problem_response({**job.problem, "instance": job_links(job).self}, job_headers(job))
    if job.state is JobState.CANCELLED:
        raise JobWasCancelled(f"Job {job.id} was cancelled.", {"job_id": job.id})
    if job.state is not JobState.SUCCEEDED:
        extensions = {"state": job.state, "job_id": job.id, "retry_after_seconds": 1}
        raise ResultNotReady(f"Job {job.id} is {job.state}.", extensions)
    return _send_document(job, rendering, service)


def job_headers(job: Job) -> dict[str, str]:
    """Return the headers about a job in any answer that concerns it."""
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
    document = rendered_document(job, rendering, service)
    media_type = MEDIA_TYPES[rendering.format]
    suffix = ("times." if rendering.times else "") + _SUFFIXES.get(rendering.format, "json")
    digest = f"sha-256=:{base64.b64encode(bytes.fromhex(document.sha256)).decode()}:"
    headers = job_headers(job) | {
        "Cache-Control": "private, no-cache",
        "Unencoded-Digest": digest,
        "Content-Disposition": f'inline; filename="{job.id}.{suffix}"',
    }
    is_through_nginx = ACCEL_HEADER in request.headers
    try:
        size_bytes = document.path.stat().st_size
    except FileNotFoundError:  # it was deleted meanwhile: nginx will notice
        size_bytes = 0
    varies = is_through_nginx and service.limits.compress and size_bytes >= COMPRESS_FROM_BYTES
    if varies:
        headers["Vary"] = "Accept-Encoding"
    # A client that requests a range resumes the plain document.
    accepted = dict(request.accept_encodings)
    prefers_gzip = 0.0 < accepted.get("gzip", 0.0) >= accepted.get("identity", 0.0)
    is_compressed = varies and prefers_gzip and "Range" not in request.headers
    if not is_compressed:
        headers["Repr-Digest"] = digest
    if is_through_nginx:
        response = _send_through_nginx(document, media_type, service.folder.jobs, is_compressed=is_compressed)
    else:
        response = send_file(document.path, mimetype=media_type, etag=document.sha256, conditional=True)
    if response.status_code == 412:
        response.close()
        raise PreconditionFailed("The document is not the one that the request is about.")
    response.headers.update(headers)
    return response


def _send_through_nginx(
    document: RenderedDocument, media_type: str, root: Path, *, is_compressed: bool
) -> Response:
    """Answer conditional requests here; nginx sends the file, whole or by ranges."""
    response = Response(mimetype=media_type)
    response.automatically_set_content_length = False  # only nginx may know it
    response.headers["Content-Type"] = media_type
    response.set_etag(document.sha256, weak=is_compressed)
    if request.method in ("GET", "HEAD"):
        response.make_conditional(request.environ)
    if response.status_code != 200:
        return response
    if is_compressed and request.method == "HEAD":  # nginx does not compress HEAD: its length would be wrong
        response.headers["Content-Encoding"] = "gzip"
        return response
    prefix = COMPRESSED_PREFIX if is_compressed else ACCEL_PREFIX
    response.headers["X-Accel-Redirect"] = f"{prefix}{document.path.relative_to(root)}"
    return response


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with `value` as JSON, not to be cached. It may be, or hold, models of pydantic."""
    body = orjson.dumps(value, default=lambda model: model.model_dump(mode="json"))
    response = Response(body, status=status, mimetype="application/json", headers=headers)
    response.headers["Cache-Control"] = "no-store"
    return response
