"""Whether an upload may begin: everything that can be known before its body is read."""

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
from app.web.head import Query, RequestHead
from app.web.options import CALLBACK, Fault, RequestOptions, check_model, invalid_options, parse_options
from app.web.preferences import parse_prefer
from app.web.service import Service, WebLimits
from app.web.sources import JSON_BODY_BYTES

PROMISE_SECONDS = 60.0  # from admission until the upload's own reservation
_KEY = re.compile(r'"(?P<quoted>[ !#-\[\]-~]{1,255})"|(?P<bare>[!#-+\--\[\]-~]{1,255})')
_ACCEPTED_TYPES = ("video/*", "application/octet-stream", "multipart/form-data", "application/json")


class BodyKind(StrEnum):
    RAW = "raw"
    MULTIPART = "multipart"
    NAMED = "named"  # JSON that names the video


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave to send a body, or the job that makes it needless."""

    options: RequestOptions
    request: JobRequest
    body_kind: BodyKind
    boundary: bytes  # of a multipart body; else empty
    digests: tuple[ExpectedDigest, ...]  # what the client says that the body's are
    earlier: Job | None  # the request's key is known: its body need not be read


def admit(head: RequestHead, service: Service, *, key: str, body_folder: str = "") -> Admission:
    """Check an upload by its head alone and promise it disk space under `key`, the request's id.

    `body_folder` names the folder in which nginx writes the body by itself, if it does. Raises the
    FrameboxError that the caller is to be told: InvalidOption, UnsupportedMediaType, EmptyBody,
    BodyTooLarge, IdempotencyConflict, TooManyJobs, EngineUnavailable or InsufficientStorage.
    """
    admission = examine(head, service, key=key)
    if admission.earlier is None:
        check_queue(service)
    if admission.earlier is None or admission.body_kind is BodyKind.NAMED:
        _check_length(head, _limit_bytes(admission.body_kind, service.limits))
        size_bytes = head.content_length or 0
        service.space.reserve(key, size_bytes, seconds=PROMISE_SECONDS, body_folder=body_folder)
        return replace(admission, earlier=None)  # what a short body names is compared too
    return admission


def examine(head: RequestHead, service: Service, *, key: str) -> Admission:
    """Return what `admit` returns, for an upload that has arrived: promise no space, refuse no queue."""
    options = parse_options(head.query)
    request = _job_request(
        options,
        service,
        request_id=key,
        idempotency_key=_parse_key(head.headers.get("Idempotency-Key")),
        waits=parse_prefer(head.headers.get("Prefer")).wait_seconds != 0,
    )
    body_kind, boundary = _body_kind(head.headers.get("Content-Type"))
    digests = expected_digests(head.headers)
    is_raw = body_kind is BodyKind.RAW  # a form's length and digests are not its video's
    claimed = VideoSource(
        head.content_length if is_raw else None, stated_sha256(digests) if is_raw else None, None
    )
    earlier = service.store.attach(request, claimed, is_read=False)
    return Admission(options, request, body_kind, boundary, digests, earlier)


def queued_request(query: Query, service: Service, *, request_id: str) -> JobRequest:
    """The request for a job that nobody waits for, of a query string's pairs.

    Raises InvalidOption, EngineUnavailable.
    """
    return _job_request(
        parse_options(query), service, request_id=request_id, idempotency_key=None, waits=False
    )


def _job_request(
    options: RequestOptions, service: Service, *, request_id: str, idempotency_key: str | None, waits: bool
) -> JobRequest:
    """Who waits for the answer is served first, unless the request says otherwise."""
    models = service.heartbeats.engine().models
    model = check_model(options.detection, models, service.limits.default_model)
    usual = Priority.INTERACTIVE if waits else Priority.BATCH
    return JobRequest(
        owner=g.owner,
        request_id=request_id,
        model=model,
        options=options.detection,
        priority=options.priority or usual,
        idempotency_key=idempotency_key,
        model_sha256=next(
            (found.facts.sha256 for found in models if found.name == model and found.facts), None
        ),
        may_attach=service.limits.attach if options.attach is None else options.attach,
        callback=_parse_callback(options.callback, service.limits),
    )


def _parse_callback(url: str | None, limits: WebLimits) -> Callback | None:
    if url is None:
        return None
    if not limits.callbacks:
        nothing = "none: the service has no secret to sign with, FRAMEBOX_WEBHOOK_SECRET"
        raise invalid_options([Fault(CALLBACK, "cannot be asked for", nothing)])
    try:
        return Callback(url, parse_target(url, limits.addresses).shown)
    except TargetRefused as refusal:
        raise invalid_options([Fault(CALLBACK, refusal.reason, refusal.allowed)]) from refusal


def _parse_key(header: str | None) -> str | None:
    """The key of an Idempotency-Key header: a string of RFC 8941, or, as many send it, without its quotes."""
    if header is None:
        return None
    match = _KEY.fullmatch(header.strip())
    if match is None:
        raise invalid_options(
            [Fault("Idempotency-Key", "is not a valid key", "1 to 255 printable ASCII characters")]
        )
    return match["quoted"] or match["bare"]


def _body_kind(content_type: str | None) -> tuple[BodyKind, bytes]:
    """A body without a type is taken for the video itself: `curl -T` sends none."""
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


def _limit_bytes(body_kind: BodyKind, limits: WebLimits) -> int:
    return JSON_BODY_BYTES if body_kind is BodyKind.NAMED else limits.max_upload_bytes


def _check_length(head: RequestHead, limit_bytes: int) -> None:
    if head.content_length is not None and head.content_length > limit_bytes:
        raise body_too_large(limit_bytes)
    if not head.is_chunked and not head.content_length:
        raise EmptyBody("The request has no body; send the video.")


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit_bytes} bytes.", {"limit_bytes": limit_bytes})


def check_queue(service: Service) -> None:
    """Raise TooManyJobs if there may be no more."""
    limit = service.limits.max_active_jobs
    if service.store.active_count(owner=g.owner) >= limit:
        raise TooManyJobs(f"{limit} jobs are queued or running.", {"limit": limit, "retry_after_seconds": 30})
