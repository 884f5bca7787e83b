"""Whether an upload may begin: everything that can be known before its body is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import parse_qsl, urlsplit

from werkzeug.datastructures import Headers
from werkzeug.http import parse_options_header

from app.egress.targets import TargetRefused, parse_target
from app.errors import BodyTooLarge, EmptyBody, MalformedBody, TooManyJobs, UnsupportedMediaType
from app.jobs.job import Callback, Job, JobRequest, Priority
from app.web.digests import ExpectedDigest, expected_digests, stated_sha256
from app.web.options import CALLBACK, Fault, RequestOptions, check_model, invalid_options, parse_options
from app.web.preferences import parse_prefer
from app.web.service import Service, WebLimits
from app.web.sources import JSON_BODY_BYTES

PROMISE_SECONDS = 60.0  # from admission until the upload's own reservation
_ENCODING = {"Content-": "Transfer-"}  # what HTTP calls them
_KEY = re.compile(r'"(?P<quoted>[ !#-\[\]-~]{1,255})"|(?P<bare>[!#-+\--\[\]-~]{1,255})')
_ACCEPTED_TYPES = ("video/*", "application/octet-stream", "multipart/form-data", "application/json")


class BodyKind(StrEnum):
    RAW = "raw"
    MULTIPART = "multipart"
    NAMED = "named"  # JSON that names the video


@dataclass(frozen=True, slots=True)
class UploadHead:
    """What a request says of itself before its body."""

    query: tuple[tuple[str, str], ...]
    content_type: str | None
    content_length: int | None
    chunked: bool
    idempotency_key: str | None
    headers: Headers  # those that say what the body's digest is are among them
    waits: bool  # for the answer: see Preference


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave to send a body, or the job that makes it needless."""

    options: RequestOptions
    request: JobRequest
    body_kind: BodyKind
    boundary: bytes  # of a multipart body; else empty
    digests: tuple[ExpectedDigest, ...]  # what the client says that the body's are
    earlier: Job | None  # the request's key is known: its body need not be read


def admit(head: UploadHead, service: Service, *, key: str, body_folder: str = "") -> Admission:
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


def examine(head: UploadHead, service: Service, *, key: str) -> Admission:
    """What `admit` tells, of an upload that has come already: it asks for no room and refuses no queue."""
    options = parse_options(head.query)
    own_key = _parse_key(head.idempotency_key)
    request = _job_request(options, service, request_id=key, idempotency_key=own_key, waits=head.waits)
    body_kind, boundary = _body_kind(head.content_type)
    digests = expected_digests(head.headers)
    is_raw = body_kind is BodyKind.RAW  # a form's length and digests are not its video's
    earlier = service.store.attach(
        request,
        None,
        size_bytes=head.content_length if is_raw else None,
        stated_sha256=stated_sha256(digests) if is_raw else None,
    )
    return Admission(options, request, body_kind, boundary, digests, earlier)


def upload_head(query: Iterable[tuple[str, str]], headers: Headers, *, prefix: str) -> UploadHead:
    """The head of a request. `prefix` is that of Length and Encoding: nginx asks with names of its own."""
    length = headers.get(f"{prefix}Length", "")
    return UploadHead(
        tuple(query),
        headers.get("Content-Type") or None,
        int(length) if length.isascii() and length.isdigit() else None,
        "chunked" in headers.get(f"{_ENCODING.get(prefix, prefix)}Encoding", "").lower(),
        headers.get("Idempotency-Key"),
        headers,
        parse_prefer(headers.get("Prefer")).wait_seconds != 0,
    )


def upload_head_of_nginx(headers: Headers) -> UploadHead:
    """The head of the request about which nginx asks: its own has neither the address nor the length."""
    query = urlsplit(headers.get("Framebox-Upload-Uri", "")).query
    return upload_head(parse_qsl(query, keep_blank_values=True), headers, prefix="Framebox-Upload-")


def queued_request(query: Iterable[tuple[str, str]], service: Service, *, request_id: str) -> JobRequest:
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
    models = service.store.engine_status().models
    model = check_model(options.detection, models, service.limits.default_model)
    usual = Priority.INTERACTIVE if waits else Priority.BATCH
    return JobRequest(
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


def _check_length(head: UploadHead, limit_bytes: int) -> None:
    if head.content_length is not None and head.content_length > limit_bytes:
        raise body_too_large(limit_bytes)
    if not head.chunked and not head.content_length:
        raise EmptyBody("The request has no body; send the video.")


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit_bytes} bytes.", {"limit_bytes": limit_bytes})


def check_queue(service: Service) -> None:
    """Raise TooManyJobs if there may be no more."""
    limit = service.limits.max_active_jobs
    if service.store.active_count() >= limit:
        raise TooManyJobs(f"{limit} jobs are queued or running.", {"limit": limit, "retry_after_seconds": 30})
