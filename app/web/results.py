"""A job's document on its way out: sent by the kernel, through nginx or without it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import orjson
from flask import Response, request, send_file

from app.errors import JobWasCancelled, ResultNotReady
from app.jobs.job import Job, JobState
from app.jobs.report import job_links
from app.pipeline.formats import MEDIA_TYPES, FormatContext, convert
from app.pipeline.options import DocumentFormat
from app.storage.durable import atomic_write
from app.web.problems import problem_response
from app.web.service import Service

ACCEL_HEADER = "Framebox-Accel"  # set by nginx alone, which takes it from every client
ACCEL_PREFIX = "/_results/"  # nginx's internal location of the jobs' folders


def send_end(job: Job, document_format: DocumentFormat, service: Service) -> Response:
    """Answer with what a job has come to: its document, or why there is none.

    Raises ResultNotReady while it runs, JobWasCancelled if it was.
    """
    if job.state is JobState.FAILED and job.problem is not None:
        return problem_response({**job.problem, "instance": job_links(job)["self"]}, job_headers(job))
    if job.state is JobState.CANCELLED:
        raise JobWasCancelled(f"Job {job.id} was cancelled.", {"instance": job_links(job)["self"]})
    if job.state is not JobState.SUCCEEDED:
        raise ResultNotReady(
            f"Job {job.id} is {job.state}.",
            {"state": job.state, "instance": job_links(job)["self"], "retry_after_seconds": 1},
        )
    return _send_document(job, document_format, service)


def job_headers(job: Job) -> dict[str, str]:
    """The headers that tell of a job in any answer that concerns it."""
    headers = {
        "Framebox-Job": job.id,
        "Link": f'<{job_links(job)["self"]}>; rel="describedby"; type="application/json"',
    }
    completeness = (job.report or {}).get("completeness")
    if job.state is JobState.SUCCEEDED and completeness:
        headers["Framebox-Frames"] = str(completeness["frames_analysed"])
        headers["Framebox-Complete"] = "true" if completeness["complete"] else "false"
    return headers


def _send_document(job: Job, document_format: DocumentFormat, service: Service) -> Response:
    path, sha256_hex = _document(job, document_format, service)
    media_type = MEDIA_TYPES[document_format]
    headers = job_headers(job) | {
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256_hex)).decode()}:",
        "Content-Disposition": f'inline; filename="{job.id}.{_suffix(document_format)}"',
    }
    if ACCEL_HEADER in request.headers:
        response = _hand_to_nginx(path, sha256_hex, media_type, service.folder.jobs)
    else:
        response = send_file(path, mimetype=media_type, etag=sha256_hex, conditional=True)
    response.headers.update(headers)
    return response


def _hand_to_nginx(path: Path, sha256_hex: str, media_type: str, root: Path) -> Response:
    """nginx sends the file, whole or by ranges; whether the client has it already is for us to say."""
    response = Response(mimetype=media_type)
    response.headers["Content-Type"] = media_type
    response.set_etag(sha256_hex)
    if request.method in ("GET", "HEAD"):
        response.make_conditional(request.environ)
    if response.status_code == 200:
        response.headers["X-Accel-Redirect"] = f"{ACCEL_PREFIX}{path.relative_to(root)}"
    return response


def _document(job: Job, document_format: DocumentFormat, service: Service) -> tuple[Path, str]:
    """The document's file and its SHA-256 in hex. A form other than `pairs` is made when first asked for."""
    found = job.report or {}
    pairs = service.folder.result(job.id, DocumentFormat.PAIRS)
    if document_format is DocumentFormat.PAIRS:
        return pairs, found["document"]["sha256"]
    path = service.folder.result(job.id, document_format)
    digest_file = path.with_name(f"{path.name}.sha256")
    if not digest_file.exists():
        convert(pairs, document_format, path, _format_context(job, service))
        with atomic_write(digest_file) as file:
            file.write(_file_sha256(path).encode())
    return path, digest_file.read_text()


def _format_context(job: Job, service: Service) -> FormatContext:
    video: dict[str, Any] = (job.report or {}).get("video") or {}
    models = {model["name"]: model for model in service.store.engine_status().models}
    labels = models.get(job.model, {}).get("labels", ())
    return FormatContext(
        video_name=job.source.name or "video",
        width=int(video.get("width", 0)),
        height=int(video.get("height", 0)),
        labels=tuple(labels),
    )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(document_format: DocumentFormat) -> str:
    return {DocumentFormat.NDJSON: "ndjson", DocumentFormat.CSV: "csv", DocumentFormat.MOT: "txt"}.get(
        document_format, "json"
    )


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with `value` as JSON, not to be cached."""
    response = Response(orjson.dumps(value), status=status, mimetype="application/json", headers=headers)
    response.headers["Cache-Control"] = "no-store"
    return response
