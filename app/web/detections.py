"""``POST /v1/detections``: a video comes in, and its document goes out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from flask import Response, after_this_request, g, request
from structlog.contextvars import bind_contextvars

from app.errors import EngineUnavailable, FrameboxError, InsufficientStorage, InternalError
from app.jobs.intake import accept_job
from app.jobs.job import Job
from app.jobs.report import public_report
from app.storage.data_folder import new_job_id
from app.storage.space import free_bytes
from app.storage.spool import ReceivedUpload, Upload
from app.web.admission import (
    Admission,
    BodyKind,
    UploadHead,
    admit,
    examine,
    upload_head,
    upload_head_of_nginx,
)
from app.web.body import READ_BYTES, body_pieces, discard_rest, receive_multipart, receive_raw
from app.web.digests import algorithm_names, check_digests, checked_pieces
from app.web.preferences import Preference, parse_prefer
from app.web.request_times import Wait
from app.web.results import job_headers, json_response, send_end
from app.web.service import Service
from app.web.sources import JSON_BODY_BYTES, NamedVideos, parse_source
from app.web.waiting import client_is_gone, wait_for_end

_DISCARD_SECONDS = 5.0


class DetectionViews:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._named = NamedVideos(service)

    def create(self) -> Response:
        """Spool the video, queue its job, wait as long as the caller wants, answer."""
        preference = parse_prefer(request.headers.get("Prefer"))
        try:
            head = upload_head(request.args.items(multi=True), request.headers, prefix="Content-")
            admission = admit(head, self._service, key=g.request_id)
            job = admission.earlier or self._accept(head, admission)
        except FrameboxError as error:
            self._service.metrics.uploads.labels(outcome=error.code).inc()
            after_this_request(discard_rest_afterwards)
            raise
        if admission.earlier is not None:
            after_this_request(discard_rest_afterwards)
        return self._answer(job, admission, preference)

    def attached(self) -> Response:
        """Answer a request whose key is known: nginx keeps its body, and asks here."""
        head = upload_head_of_nginx(request.headers)
        admission = admit(head, self._service, key=g.request_id)
        if admission.earlier is None:
            raise EngineUnavailable("The job was just removed; try again.", {"retry_after_seconds": 1})
        return self._answer(admission.earlier, admission, parse_prefer(request.headers.get("Prefer")))

    def _accept(self, head: UploadHead, admission: Admission) -> Job:
        if admission.body_kind is not BodyKind.NAMED:
            return self._receive(head, admission)
        try:
            pieces = self._pieces(admission, head, limit_bytes=JSON_BODY_BYTES)
            return self._named.accept(parse_source(b"".join(pieces), self._named.kinds), admission.request)
        finally:
            self._service.space.release(g.request_id)

    def create_from_body(self) -> Response:
        """Take the video that nginx has written to disk, queue its job, wait as long as wanted, answer."""
        preference = parse_prefer(request.headers.get("Prefer"))
        try:
            head = upload_head(request.args.items(multi=True), request.headers, prefix="Framebox-Upload-")
            admission = examine(head, self._service, key=g.request_id)
            job = self._take(head, admission)  # a known key's too: the content has come, and is compared
        except BaseException as error:
            self._service.space.release(g.request_id)  # else it was released when the body was taken
            if isinstance(error, FrameboxError):
                self._service.metrics.uploads.labels(outcome=error.code).inc()
            raise
        return self._answer(job, admission, preference)

    def tell_unspooled(self) -> Response:
        """Say why nginx could not write a body: it tells that to its log alone.

        Nothing is written here: a full disk has no room for it. The promise ends with the body's file.
        """
        needed_bytes = upload_head_of_nginx(request.headers).content_length or 0
        available_bytes = free_bytes(self._service.folder.root)
        if available_bytes >= needed_bytes:
            raise InternalError("The body could not be written to disk.")
        self._service.metrics.uploads.labels(outcome=InsufficientStorage.code).inc()
        raise InsufficientStorage(
            "The disk ran full while the body came.",
            {"needed_bytes": needed_bytes, "available_bytes": available_bytes},
        )

    def _take(self, head: UploadHead, admission: Admission) -> Job:
        """nginx removes the body with the request where it is not taken."""
        service = self._service
        if admission.body_kind is not BodyKind.RAW or not head.content_length:
            raise ValueError("nginx writes raw bodies of known length alone")
        named = request.headers.get("Framebox-Body-File", "")
        with (
            service.bodies.open(named, request_id=g.request_id, expected_bytes=head.content_length) as body,
            service.spool.take(new_job_id(), key=g.request_id, body=body) as upload,
        ):
            service.metrics.upload_bytes.inc(upload.size_bytes)
            check_digests(admission.digests, body.digests(algorithm_names(admission.digests)))
            return self._make_job(upload, admission, None)

    def _make_job(self, upload: ReceivedUpload, admission: Admission, video_name: str | None) -> Job:
        service = self._service
        return accept_job(
            upload,
            spool=service.spool,
            folder=service.folder,
            store=service.store,
            request=admission.request,
            video_name=video_name,
        )

    def _receive(self, head: UploadHead, admission: Admission) -> Job:
        service, job_id = self._service, new_job_id()
        with service.spool.receive(job_id, key=g.request_id, expected_bytes=head.content_length) as upload:
            video_name = self._read_body(admission, head, upload)
            service.metrics.upload_bytes.inc(upload.size_bytes)
            return self._make_job(upload, admission, video_name)

    def _pieces(self, admission: Admission, head: UploadHead, *, limit_bytes: int) -> Iterator[bytes]:
        connection = request.environ.get("gunicorn.socket")
        pieces = body_pieces(
            request.stream,
            expected_bytes=head.content_length,
            limit_bytes=limit_bytes,
            watch=self._service.pace.watch(connection, piece_bytes=READ_BYTES),
        )
        return checked_pieces(pieces, admission.digests)

    def _read_body(self, admission: Admission, head: UploadHead, upload: Upload) -> str | None:
        pieces = self._pieces(admission, head, limit_bytes=self._service.limits.max_upload_bytes)
        if admission.body_kind is BodyKind.MULTIPART:
            return receive_multipart(pieces, admission.boundary, upload)
        receive_raw(pieces, upload)
        return None

    def _answer(self, job: Job, admission: Admission, preference: Preference) -> Response:
        is_own = job.request_id == g.request_id
        self._service.metrics.uploads.labels(outcome="accepted" if is_own else "attached").inc()
        bind_contextvars(job_id=job.id)
        connection = request.environ.get("gunicorn.socket")
        with self._service.places.take() as may_wait, g.times.waiting(Wait.JOB):
            job = wait_for_end(
                self._service.watcher,
                job,
                seconds=self._wait_seconds(preference) if may_wait else 0.0,
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

    def _wait_seconds(self, preference: Preference) -> float:
        longest = self._service.limits.max_wait_seconds
        return longest if preference.wait_seconds is None else min(preference.wait_seconds, longest)


def discard_rest_afterwards(response: Response) -> Response:
    """The answer goes out first; then what the client still sends is read and dropped."""
    stream, connection = request.stream, request.environ.get("gunicorn.socket")
    response.call_on_close(partial(discard_rest, stream, connection, seconds=_DISCARD_SECONDS))
    return response
