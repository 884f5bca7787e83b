"""``POST /v1/detections``: takes a video and answers with its document."""

from __future__ import annotations

import time

from flask import Response, after_this_request, g, request
from structlog.contextvars import bind_contextvars

from app.errors import EngineUnavailable, FrameboxError, InsufficientStorage, InternalError, MethodNotAllowed
from app.jobs.job import Job
from app.storage.bodies import SpooledBody, folder_name
from app.storage.space import free_bytes
from app.storage.spool import Upload
from app.web.admission import Admission, BodyKind, admit, examine
from app.web.body import READ_BYTES, body_pieces, discard_rest_afterwards, receive_multipart, receive_raw
from app.web.digests import algorithm_names, check_digests, checked_pieces
from app.web.head import RequestHead, head_in, head_of, parse_prefer
from app.web.problems import nginx_refusal
from app.web.report import public_report
from app.web.results import job_headers, json_response, send_end
from app.web.service import Service
from app.web.sources import JSON_BODY_BYTES, accept_named
from app.web.waiting import Wait, client_is_gone, slot_of, wait_for_end


class DetectionViews:
    def __init__(self, service: Service) -> None:
        self._service = service

    def create_detection(self) -> Response:
        """Spool the video, queue its job, wait as long as the client prefers, and answer."""
        try:
            head = head_of(request)
            admission = admit(head, self._service)
            job = admission.earlier or self._accept(head, admission)
        except FrameboxError as error:
            self._service.metrics.uploads.labels(outcome=error.code).inc()
            after_this_request(discard_rest_afterwards)
            raise
        if admission.earlier is not None:
            after_this_request(discard_rest_afterwards)
        return self._answer(job, admission)

    def admit_upload(self) -> Response:
        """Answer nginx: whether this upload may begin, or which job makes its body unnecessary."""
        head = head_in(request.headers)
        try:
            if head.method != "POST":  # with or without a body
                raise MethodNotAllowed(f"{head.method[:20]} is not possible here.", {"allowed": ["POST"]})
            spooled = request.headers.get("Framebox-Upload-Spooled", "")
            body_folder = folder_name(g.request_id) if spooled else ""
            admission = admit(head, self._service, body_folder=body_folder)
        except FrameboxError as error:
            self._service.metrics.uploads.labels(outcome=error.code).inc()
            return nginx_refusal(error)
        if admission.earlier is not None and not head.is_chunked:  # nginx would read a chunked body first
            return Response(status=403, headers={"Framebox-Earlier-Job": admission.earlier.id})
        return Response(status=204)

    def answer_again(self) -> Response:
        """Answer a request with a known idempotency key: nginx keeps its body and asks here."""
        admission = admit(head_in(request.headers), self._service)
        if admission.earlier is None:
            raise EngineUnavailable("The job was just removed; try again.", {"retry_after_seconds": 1})
        return self._answer(admission.earlier, admission)

    def create_from_body(self) -> Response:
        """Take the video that nginx wrote to disk; otherwise like `create_detection`."""
        service, named = self._service, request.headers.get("Framebox-Body-File", "")
        try:
            head = head_in(request.headers)
            admission = examine(head, service)
            size_bytes = head.content_length
            if admission.body_kind is not BodyKind.RAW or not size_bytes:
                raise ValueError("nginx writes only raw bodies of known length")  # noqa: TRY301 - the promise goes

            def check(body: SpooledBody) -> None:
                service.metrics.upload_bytes.inc(body.size_bytes)
                check_digests(admission.digests, body.digests(algorithm_names(admission.digests)))

            # nginx removes the file with the request if it is not taken. With a known key the content is
            # compared now.
            with service.bodies.open(named, request_id=g.request_id, expected_bytes=size_bytes) as body:
                job = service.intake.from_body(admission.request, body, check=check)
        except BaseException as error:
            service.space.release(g.request_id)  # else it was released when the body was taken
            if isinstance(error, FrameboxError):
                service.metrics.uploads.labels(outcome=error.code).inc()
            raise
        return self._answer(job, admission)

    def explain_unspooled(self) -> Response:
        """Explain to the client why nginx could not write a body, which nginx itself only logs.

        Writes nothing, because the disk may be full. The space reservation ends with the body's file.
        """
        needed_bytes = head_in(request.headers).content_length or 0
        available_bytes = free_bytes(self._service.folder.root)
        if available_bytes >= needed_bytes:
            raise InternalError("The body could not be written to disk.")
        self._service.metrics.uploads.labels(outcome=InsufficientStorage.code).inc()
        raise InsufficientStorage(
            "The disk ran full while the body came.",
            {"needed_bytes": needed_bytes, "available_bytes": available_bytes},
        )

    def _accept(self, head: RequestHead, admission: Admission) -> Job:
        """Take the body as it arrives: the video, a multipart form with it, or JSON that names it."""
        service, is_named = self._service, admission.body_kind is BodyKind.NAMED
        pieces = body_pieces(
            request.stream,
            expected_bytes=head.content_length,
            limit_bytes=JSON_BODY_BYTES if is_named else service.limits.max_upload_bytes,
            watch=service.pace.watch(request.environ.get("gunicorn.socket"), piece_bytes=READ_BYTES),
        )
        pieces = checked_pieces(pieces, admission.digests)

        def receive(upload: Upload) -> str | None:
            name = None
            if admission.body_kind is BodyKind.MULTIPART:
                name = receive_multipart(pieces, admission.boundary, upload)
            else:
                receive_raw(pieces, upload)
            service.metrics.upload_bytes.inc(upload.size_bytes)
            return name

        if not is_named:
            return service.intake.from_stream(admission.request, receive, expected_bytes=head.content_length)
        try:
            return accept_named(b"".join(pieces), admission.request, service)
        finally:
            service.space.release(g.request_id)

    def _answer(self, job: Job, admission: Admission) -> Response:
        preference = parse_prefer(request.headers.get("Prefer"))
        is_own = job.request_id == g.request_id
        self._service.metrics.uploads.labels(outcome="accepted" if is_own else "attached").inc()
        bind_contextvars(job_id=job.id)
        connection = request.environ.get("gunicorn.socket")
        seconds = self._service.limits.max_wait_seconds
        if preference.wait_seconds is not None:
            seconds = min(preference.wait_seconds, seconds)
        with slot_of(self._service.waiting_slots) as may_wait, g.times.waiting(Wait.JOB):
            job = wait_for_end(
                self._service.watcher,
                job,
                seconds=seconds if may_wait else 0.0,
                is_abandoned=lambda: self._service.stopping.is_set() or client_is_gone(connection),
            )
        if job.state.is_final and preference.wait_seconds != 0:
            response = send_end(job, admission.options.rendering, self._service)
        else:
            report = public_report(job, now=time.time())
            response = json_response(report, 202, job_headers(job) | {"Location": report.links.self})
        if preference.applied:
            response.headers["Preference-Applied"] = preference.applied
        if not is_own:
            response.headers["Framebox-Attached"] = "true"
        return response
