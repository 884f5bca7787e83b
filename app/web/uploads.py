"""``/v1/uploads``: resumable uploads, as tus 1.0.0 has them, and what becomes of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from flask import Response, after_this_request, g, request
from structlog.contextvars import bind_contextvars

from app.errors import FrameboxError, IncompleteBody, UploadLocked, UploadNotFound
from app.jobs.job import Job
from app.jobs.resumed import job_of_upload
from app.storage.checksum import ALGORITHMS
from app.storage.joining import join_uploads
from app.storage.uploads import About, HeldUpload, UploadFacts
from app.web.admission import check_queue, queued_request
from app.web.body import READ_BYTES, body_pieces
from app.web.cors import cors_headers
from app.web.detections import discard_rest_afterwards
from app.web.results import job_headers
from app.web.service import Service
from app.web.sources import accept_upload
from app.web.tus import (
    EXTENSIONS,
    VERSION,
    Creation,
    Patch,
    check_patch,
    check_version,
    expires_header,
    parse_metadata,
    parse_patch,
)
from app.web.upload_head import (
    ADDRESS,
    UploadHead,
    check_method,
    detection_query,
    head_of_request,
    read_creation,
)


class UploadViews:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._uploads = service.uploads

    def serve(self, upload_id: str | None = None) -> Response:
        """Answer a request to the address of all uploads, or of one; the method may be overridden."""
        after_this_request(self._add_headers)
        head = head_of_request(request.method, upload_id, request.headers)
        try:
            check_method(head)
            if head.method != "OPTIONS":
                check_version(head.headers)
            return self._answer(head)
        except FrameboxError as error:
            if head.body_bytes != 0:
                self._service.metrics.uploads.labels(outcome=error.code).inc()
                after_this_request(discard_rest_afterwards)
            raise

    def _answer(self, head: UploadHead) -> Response:
        answers: dict[str, Callable[[UploadHead, str], Response]] = {
            "HEAD": self._tell,
            "PATCH": self._append,
            "DELETE": self._remove,
        }
        if head.method == "OPTIONS":
            return self._describe()
        if head.upload_id is None:
            return self._create(head)
        return answers[head.method](head, head.upload_id)

    # ---- what there is

    def _describe(self) -> Response:
        headers = {
            "Tus-Version": VERSION,
            "Tus-Extension": ",".join(EXTENSIONS),
            "Tus-Max-Size": str(self._service.limits.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        }
        return Response(status=204, headers=headers)

    def _tell(self, _head: UploadHead, upload_id: str) -> Response:
        """The upload's offset. Whoever writes to it is stopped: who asks is about to go on with it."""
        with self._uploads.hold(upload_id) as held:
            facts = held.settle()
            job = self._job_of(held, facts)
        return Response(status=200, headers=_about_upload(facts) | _about_job(job))

    # ---- bytes

    def _create(self, head: UploadHead) -> Response:
        creation = read_creation(head, self._service)
        if creation.parts:
            return self._join(creation)
        about = About(creation.length_bytes, creation.metadata_header, creation.concat_header)
        upload_id = self._uploads.create(about, key=g.request_id)
        try:
            facts, job = self._receive(upload_id, creation.body)
        except BaseException:  # nobody will learn of its address
            with suppress(UploadNotFound), self._uploads.hold(upload_id) as held:
                held.remove()
            raise
        return self._created(facts, job)

    def _join(self, creation: Creation) -> Response:
        about = About(None, creation.metadata_header, creation.concat_header, creation.parts)
        facts = join_uploads(
            self._uploads,
            self._service.space,
            about,
            limit_bytes=self._service.limits.max_upload_bytes,
        )
        with self._uploads.hold(facts.id) as held:
            job = self._job_of(held, facts)
        return self._created(facts, job)

    def _created(self, facts: UploadFacts, job: Job | None) -> Response:
        headers = {"Location": f"{ADDRESS}/{facts.id}"} | _progress(facts) | _about_job(job)
        return Response(status=201, headers=headers)

    def _append(self, head: UploadHead, upload_id: str) -> Response:
        facts, job = self._receive(upload_id, parse_patch(head.headers, body_bytes=head.body_bytes))
        return Response(status=204, headers=_progress(facts) | _about_job(job))

    def _receive(self, upload_id: str, patch: Patch | None) -> tuple[UploadFacts, Job | None]:
        with self._uploads.hold(upload_id) as held:
            before = held.settle()
            if patch is not None:
                limit = check_patch(before, patch, limit_bytes=self._service.limits.max_upload_bytes)
                if patch.length_bytes is not None and before.about.length_bytes is None:
                    held.take_length(patch.length_bytes)
                try:
                    self._read_body(held, patch, limit)
                finally:
                    received = held.facts().offset_bytes - before.offset_bytes
                    self._service.metrics.upload_bytes.inc(received)
            facts = held.facts()
            return facts, self._job_of(held, facts)

    def _read_body(self, held: HeldUpload, patch: Patch, limit_bytes: int) -> None:
        connection = request.environ.get("gunicorn.socket")
        pieces = body_pieces(
            request.stream,
            expected_bytes=patch.body_bytes,
            limit_bytes=limit_bytes,
            watch=self._service.pace.watch(connection, piece_bytes=READ_BYTES),
        )
        was_rung_for = threading.Event()
        try:
            held.append(pieces, patch.checksum, on_ring=partial(_stop_reading, connection, was_rung_for))
        except IncompleteBody as error:
            if not was_rung_for.is_set():
                raise
            raise UploadLocked(
                "Another request has taken the upload over.", {"retry_after_seconds": 1}
            ) from error

    def _remove(self, _head: UploadHead, upload_id: str) -> Response:
        with self._uploads.hold(upload_id) as held:
            held.remove()
        return Response(status=204)

    # ---- jobs

    def _job_of(self, held: HeldUpload, facts: UploadFacts) -> Job | None:
        """The job that the upload has become, or becomes now, if it is whole and its metadata asks for it."""
        job = job_of_upload(facts, self._service.store)
        if job is not None or facts.is_spent or not facts.is_whole or facts.about.concat == "partial":
            return job
        query = detection_query(parse_metadata(facts.about.metadata))
        if query is None:
            return None
        check_queue(self._service)
        job_request = queued_request(query, self._service, request_id=g.request_id)
        job = accept_upload(held, job_request, self._service)
        outcome = "accepted" if job.request_id == g.request_id else "attached"
        self._service.metrics.uploads.labels(outcome=outcome).inc()
        bind_contextvars(job_id=job.id)
        return job

    def _add_headers(self, response: Response) -> Response:
        response.headers["Tus-Resumable"] = VERSION
        if response.status_code < 300:  # none has a body
            response.headers.pop("Content-Type", None)
        response.headers["Cache-Control"] = "no-store"
        if response.status_code == 412:
            response.headers["Tus-Version"] = VERSION
        origin, allowed = request.headers.get("Origin"), self._service.limits.cors_origins
        response.headers.update(cors_headers(origin, allowed, is_preflight=request.method == "OPTIONS"))
        return response


def _stop_reading(connection: socket.socket | None, was_rung_for: threading.Event) -> None:
    """End the body where it is: what waits for more of it sees its end."""
    was_rung_for.set()
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)


def _about_upload(facts: UploadFacts) -> dict[str, str]:
    """All that a HEAD tells."""
    about = facts.about
    headers = {"Upload-Metadata": about.metadata, "Upload-Concat": about.concat}
    if about.length_bytes is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(about.length_bytes)
    return {name: value for name, value in headers.items() if value} | _progress(facts)


def _progress(facts: UploadFacts) -> dict[str, str]:
    headers = {"Upload-Expires": expires_header(facts.expires_at)}
    if facts.about.parts and not facts.is_whole:  # it is not joined yet
        return headers
    return headers | {"Upload-Offset": str(facts.offset_bytes)}


def _about_job(job: Job | None) -> dict[str, str]:
    return {} if job is None else job_headers(job)
