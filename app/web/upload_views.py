"""``/v1/uploads``: resumable uploads, as tus 1.0.0 defines them, and the jobs that they become."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from flask import Response, after_this_request, g, request
from structlog.contextvars import bind_contextvars
from werkzeug.http import http_date

from app.errors import (
    FrameboxError,
    IncompleteBody,
    InvalidOption,
    MethodNotAllowed,
    UploadLocked,
    UploadNotFound,
)
from app.jobs.job import Job
from app.storage.hashing import ALGORITHMS
from app.storage.joining import NotAPart, join_uploads
from app.storage.uploads import About, HeldUpload, UploadFacts
from app.web import tus
from app.web.admission import RESERVATION_SECONDS, check_queue, job_request
from app.web.body import READ_BYTES, body_pieces, discard_rest_afterwards
from app.web.head import Query, RequestHead, head_in, head_of, parse_query
from app.web.options import parse_options
from app.web.problems import nginx_refusal
from app.web.report import ADDRESSES
from app.web.results import job_headers
from app.web.service import Service

_METHODS_OF_ALL = ("OPTIONS", "POST")
_METHODS_OF_ONE = ("OPTIONS", "HEAD", "PATCH", "DELETE")
# For pages of other origins that upload (CORS, Fetch standard).
_CORS_METHODS = "POST, HEAD, PATCH, DELETE, OPTIONS"
_CORS_SENT = (
    "Content-Type, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata, Upload-Defer-Length, "
    "Upload-Concat, Upload-Checksum, X-HTTP-Method-Override, X-Requested-With, Idempotency-Key, Prefer"
)
_CORS_SHOWN = (
    "Location, Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm, "
    "Upload-Length, Upload-Offset, Upload-Metadata, Upload-Defer-Length, Upload-Concat, Upload-Expires, "
    "Retry-After, Link, Framebox-Job, X-Request-ID"
)
_CORS_SECONDS = 86400


class UploadViews:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._uploads = service.uploads

    def serve_upload(self, upload_id: str | None = None) -> Response:
        """Answer a request to the address of all uploads, or of one; the method may be overridden."""
        after_this_request(self._add_headers)
        head = head_of(request)
        try:
            method, upload_id = _read_target(head)
            if method == "OPTIONS":
                return Response(
                    status=204,
                    headers={
                        "Tus-Version": tus.VERSION,
                        "Tus-Extension": ",".join(tus.EXTENSIONS),
                        "Tus-Max-Size": str(self._service.limits.max_upload_bytes),
                        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
                    },
                )
            tus.check_version(head.headers)
            if upload_id is None:
                return self._create(head)
            if method == "HEAD":
                # A request that writes to the upload is stopped: this client will resume it.
                with self._uploads.hold(upload_id, owner=g.owner) as held:
                    facts = held.settle()
                    job = self._job_of(held, facts)
                length = facts.about.length_bytes
                declared = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
                headers = dict(facts.about.notes) | declared | _progress_headers(facts, job)
                return Response(status=200, headers=headers)
            if method == "DELETE":
                with self._uploads.hold(upload_id, owner=g.owner) as held:
                    held.remove()
                return Response(status=204)
            patch = tus.parse_patch(head.headers, body_bytes=head.body_bytes)
            facts, job = self._receive(upload_id, patch)
            return Response(status=204, headers=_progress_headers(facts, job))
        except FrameboxError as error:
            if head.body_bytes != 0:
                self._service.metrics.uploads.labels(outcome=error.code).inc()
                after_this_request(discard_rest_afterwards)
            raise

    # Seven routes, one view: X-HTTP-Method-Override decides.
    create_upload = describe_uploads = serve_upload
    get_upload = append_to_upload = remove_upload = override_method = describe_upload = serve_upload

    def admit_upload_body(self) -> Response:
        """Answer nginx: whether this request may send its body. Reserves disk space for a new upload."""
        head = head_in(request.headers)
        try:
            method, upload_id = _read_target(head)
            if method != "OPTIONS":
                tus.check_version(head.headers)
            if method == "POST":
                size_bytes = self._read_creation(head).length_bytes or 0
                self._uploads.check_count(owner=g.owner)
                self._service.space.reserve(g.request_id, size_bytes, seconds=RESERVATION_SECONDS)
            elif method == "PATCH" and upload_id is not None:
                patch = tus.parse_patch(head.headers, body_bytes=head.body_bytes)
                upload = self._uploads.look(upload_id, owner=g.owner)
                tus.check_patch(upload, patch, limit_bytes=self._service.limits.max_upload_bytes)
        except FrameboxError as error:
            self._service.metrics.uploads.labels(outcome=error.code).inc()
            return self._add_headers(nginx_refusal(error))
        return Response(status=204)

    # ---- bytes

    def _read_creation(self, head: RequestHead) -> tus.Creation:
        """Return what a POST asks for. The options of a job to be created later are checked now."""
        limit = self._service.limits.max_upload_bytes
        creation = tus.parse_creation(head.headers, limit_bytes=limit, body_bytes=head.body_bytes)
        tus.metadata_text(creation.metadata, *tus.NAME_KEYS)
        query = _detection_query(creation.metadata)
        if query is not None:
            job_request(parse_options(query), self._service)
        return creation

    def _create(self, head: RequestHead) -> Response:
        creation = self._read_creation(head)
        if creation.parts:
            about = About(g.owner, None, parts=creation.parts, notes=creation.kept_headers)
            limit = self._service.limits.max_upload_bytes
            try:
                facts = join_uploads(self._uploads, self._service.space, about, limit_bytes=limit)
            except NotAPart as fault:
                raise InvalidOption(
                    f"Upload-Concat: {fault} was not created as a part.",
                    {"parameter": "Upload-Concat", "allowed": "uploads created with Upload-Concat: partial"},
                ) from fault
            with self._uploads.hold(facts.id, owner=g.owner) as held:
                job = self._job_of(held, facts)
        else:
            about = About(
                g.owner, creation.length_bytes, is_part=creation.is_part, notes=creation.kept_headers
            )
            upload_id = self._uploads.create(about, key=g.request_id)
            try:
                facts, job = self._receive(upload_id, creation.body)
            except BaseException:  # the client does not get the upload's address
                with suppress(UploadNotFound), self._uploads.hold(upload_id, owner=g.owner) as held:
                    held.remove()
                raise
        headers = {"Location": f"{ADDRESSES['upload_id']}/{facts.id}"} | _progress_headers(facts, job)
        return Response(status=201, headers=headers)

    def _receive(self, upload_id: str, patch: tus.Patch | None) -> tuple[UploadFacts, Job | None]:
        with self._uploads.hold(upload_id, owner=g.owner) as held:
            before = held.settle()
            if patch is not None:
                limit = tus.check_patch(before, patch, limit_bytes=self._service.limits.max_upload_bytes)
                if patch.length_bytes is not None and before.about.length_bytes is None:
                    held.take_length(patch.length_bytes)
                try:
                    self._read_body(held, patch, limit)
                finally:
                    received = held.facts().offset_bytes - before.offset_bytes
                    self._service.metrics.upload_bytes.inc(received)
            facts = held.facts()
            return facts, self._job_of(held, facts)

    def _read_body(self, held: HeldUpload, patch: tus.Patch, limit_bytes: int) -> None:
        connection = request.environ.get("gunicorn.socket")
        pieces = body_pieces(
            request.stream,
            expected_bytes=patch.body_bytes,
            limit_bytes=limit_bytes,
            watch=self._service.pace.watch(connection, piece_bytes=READ_BYTES),
        )
        is_taken_over = threading.Event()

        def stop_reading() -> None:  # the thread that waits for more of the body sees its end
            is_taken_over.set()
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)

        try:
            held.append(pieces, patch.checksum, on_takeover=stop_reading)
        except IncompleteBody as error:
            if not is_taken_over.is_set():
                raise
            raise UploadLocked(
                "Another request has taken the upload over.", {"retry_after_seconds": 1}
            ) from error

    # ---- jobs

    def _job_of(self, held: HeldUpload, facts: UploadFacts) -> Job | None:
        """Return the upload's job; create it if the upload is complete and its metadata asks for one."""
        job = self._service.intake.job_of_upload(facts)
        if job is not None or facts.is_spent or not facts.is_whole or facts.about.is_part:
            return job
        metadata = tus.metadata_of(facts)
        query = _detection_query(metadata)
        if query is None:
            return None
        check_queue(self._service)
        asked = job_request(parse_options(query), self._service)
        job = self._service.intake.from_upload(asked, held, tus.metadata_text(metadata, *tus.NAME_KEYS))
        outcome = "accepted" if job.request_id == g.request_id else "attached"
        self._service.metrics.uploads.labels(outcome=outcome).inc()
        bind_contextvars(job_id=job.id)
        return job

    def _add_headers(self, response: Response) -> Response:
        response.headers["Tus-Resumable"] = tus.VERSION
        if response.status_code < 300:  # none has a body
            response.headers.pop("Content-Type", None)
        response.headers["Cache-Control"] = "no-store"
        if response.status_code == 412:
            response.headers["Tus-Version"] = tus.VERSION
        origin, allowed = request.headers.get("Origin"), self._service.limits.cors_origins
        if allowed:
            response.headers["Vary"] = "Origin"
        if origin is None or (origin not in allowed and "*" not in allowed):
            return response  # without permission for a page to read it
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _CORS_SHOWN
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = _CORS_METHODS
            response.headers["Access-Control-Allow-Headers"] = _CORS_SENT
            response.headers["Access-Control-Max-Age"] = str(_CORS_SECONDS)
        return response


def _read_target(head: RequestHead) -> tuple[str, str | None]:
    """Return a request's method, or its X-HTTP-Method-Override, and the id of the upload that it names.

    The id is None for the address of all uploads. Raises MethodNotAllowed.
    """
    method = head.headers.get("X-HTTP-Method-Override", head.method).upper()
    upload_id = head.path.removeprefix(ADDRESSES["upload_id"]).strip("/") or None
    allowed = _METHODS_OF_ALL if upload_id is None else _METHODS_OF_ONE
    if method not in allowed:
        raise MethodNotAllowed(f"{method[:20]} is not possible here.", {"allowed": [*allowed]})
    return method, upload_id


def _detection_query(metadata: Mapping[str, bytes]) -> Query | None:
    """Return the options of the job that the finished upload becomes; None if it does not become one."""
    text = tus.metadata_text(metadata, "detect")
    return None if text is None else parse_query(text.removeprefix("?"))


def _progress_headers(facts: UploadFacts, job: Job | None) -> dict[str, str]:
    headers = {"Upload-Expires": http_date(facts.expires_at)}
    if facts.is_whole or not facts.about.parts:  # else it is not joined yet
        headers["Upload-Offset"] = str(facts.offset_bytes)
    return headers if job is None else headers | job_headers(job)
