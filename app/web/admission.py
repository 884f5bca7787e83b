"""Whether an upload may begin: all checks that are possible before its body is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from flask import g
from werkzeug.http import parse_options_header

from app.egress.targets import TargetRefused, parse_target
from app.errors import BodyTooLarge, EmptyBody, MalformedBody, TooManyJobs, UnsupportedMediaType
from app.jobs.job import Callback, Job, JobRequest, Priority, VideoSource
from app.web.digests import ExpectedDigest, expected_digests, stated_sha256
from app.web.head import RequestHead, parse_prefer
from app.web.options import CALLBACK, Fault, RequestOptions, check_model, invalid_options, parse_options
from app.web.service import Service
from app.web.sources import JSON_BODY_BYTES

RESERVATION_SECONDS = 60.0  # from admission until the upload's own reservation
_KEY = re.compile(r'"(?P<quoted>[ !#-\[\]-~]{1,255})"|(?P<bare>[!#-+\--\[\]-~]{1,255})')
_ACCEPTED_TYPES = ("video/*", "application/octet-stream", "multipart/form-data", "application/json")


class BodyKind(StrEnum):
    RAW = "raw"
    MULTIPART = "multipart"
    NAMED = "named"  # JSON that names the video


@dataclass(frozen=True, slots=True)
class Admission:
    """Permission to send a body, or the job that makes it unnecessary."""

    options: RequestOptions
    request: JobRequest
    body_kind: BodyKind
    boundary: bytes  # of a multipart body; else empty
    digests: tuple[ExpectedDigest, ...]  # as the client states them
    earlier: Job | None  # the request's key is known: its body need not be read


def admit(head: RequestHead, service: Service, *, body_folder: str = "") -> Admission:
    """Check an upload by its head and reserve disk space for it under the request's id.

    `body_folder` names the folder to which nginx writes the body, if it does. Raises InvalidOption,
    UnsupportedMediaType, EmptyBody, MalformedBody, BodyTooLarge, IdempotencyConflict, TooManyJobs,
    EngineUnavailable or InsufficientStorage.
    """
    admission = examine(head, service)
    if admission.earlier is None:
        check_queue(service)
    is_named = admission.body_kind is BodyKind.NAMED
    if admission.earlier is None or is_named:
        limit_bytes = JSON_BODY_BYTES if is_named else service.limits.max_upload_bytes
        size_bytes = head.content_length or 0
        if size_bytes > limit_bytes:
            raise body_too_large(limit_bytes)
        if not head.is_chunked and not size_bytes:
            raise EmptyBody("The request has no body; send the video.")
        service.space.reserve(g.request_id, size_bytes, seconds=RESERVATION_SECONDS, body_folder=body_folder)
        return replace(admission, earlier=None)  # a body that names its video is short: it is compared too
    return admission


def examine(head: RequestHead, service: Service) -> Admission:
    """Check an upload that has already arrived: `admit` without reserving space or checking the queue."""
    options = parse_options(head.query)
    request = job_request(
        options,
        service,
        idempotency_key=_parse_key(head.headers.get("Idempotency-Key")),
        waits=parse_prefer(head.headers.get("Prefer")).wait_seconds != 0,
    )
    body_kind, boundary = _parse_content_type(head.headers.get("Content-Type"))
    digests = expected_digests(head.headers)
    is_raw = body_kind is BodyKind.RAW  # a multipart body's length and digests are not its video's
    claimed = VideoSource(
        head.content_length if is_raw else None, stated_sha256(digests) if is_raw else None, None
    )
    earlier = service.store.attach(request, claimed, is_read=False)
    return Admission(options, request, body_kind, boundary, digests, earlier)


def job_request(
    options: RequestOptions, service: Service, *, idempotency_key: str | None = None, waits: bool = False
) -> JobRequest:
    """Return the request for a job. If a client `waits` for it, it runs first, unless the options differ.

    Raises InvalidOption, EngineUnavailable.
    """
    models = service.heartbeats.engine().models
    model = check_model(options.detection, models, service.limits.default_model)
    usual = Priority.INTERACTIVE if waits else Priority.BATCH
    callback = None
    if options.callback is not None:
        if not service.limits.callbacks:
            nothing = "none: the service has no secret to sign with, FRAMEBOX_WEBHOOK_SECRET"
            raise invalid_options([Fault(CALLBACK, "cannot be asked for", nothing)])
        try:
            callback = Callback(
                options.callback, parse_target(options.callback, service.limits.addresses).shown
            )
        except TargetRefused as refusal:
            raise invalid_options([Fault(CALLBACK, refusal.reason, refusal.allowed)]) from refusal
    return JobRequest(
        owner=g.owner,
        request_id=g.request_id,
        model=model,
        options=options.detection,
        priority=options.priority or usual,
        idempotency_key=idempotency_key,
        model_sha256=next(
            (found.facts.sha256 for found in models if found.name == model and found.facts), None
        ),
        may_attach=service.limits.attach if options.attach is None else options.attach,
        callback=callback,
    )


def _parse_key(header: str | None) -> str | None:
    """Return the key of an Idempotency-Key header: an RFC 8941 string, or one without its quotes."""
    if header is None:
        return None
    match = _KEY.fullmatch(header.strip())
    if match is None:
        raise invalid_options(
            [Fault("Idempotency-Key", "is not a valid key", "1 to 255 printable ASCII characters")]
        )
    return match["quoted"] or match["bare"]


def _parse_content_type(content_type: str | None) -> tuple[BodyKind, bytes]:
    """Return a body's kind and multipart boundary. Without a type, as from `curl -T`, it is raw."""
    if content_type is None:
        return BodyKind.RAW, b""
    media_type, parameters = parse_options_header(content_type)
    media_type = media_type.lower()
    if media_type.startswith("video/") or media_type == "application/octet-stream":
        return BodyKind.RAW, b""
    if media_type == "application/json":
        return BodyKind.NAMED, b""
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(
            "Send the video itself as video/* or application/octet-stream, a form with a field 'video', or "
            "JSON that names it. "
            "With curl: -H 'Content-Type: application/octet-stream' --data-binary @FILE, or -F video=@FILE.",
            {"allowed": [*_ACCEPTED_TYPES]},
        )
    boundary = parameters.get("boundary", "")
    if not 1 <= len(boundary) <= 200 or not boundary.isascii():
        raise MalformedBody("The multipart body's type names no boundary.")
    return BodyKind.MULTIPART, boundary.encode()


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit_bytes} bytes.", {"limit_bytes": limit_bytes})


def check_queue(service: Service) -> None:
    """Raise TooManyJobs if the owner may have no more active jobs."""
    limit = service.limits.max_active_jobs
    if service.store.active_count(owner=g.owner) >= limit:
        raise TooManyJobs(f"{limit} jobs are queued or running.", {"limit": limit, "retry_after_seconds": 30})
