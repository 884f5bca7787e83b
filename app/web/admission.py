"""Whether an upload may begin: everything that can be known before its body is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from werkzeug.http import parse_options_header

from app.errors import BodyTooLarge, EmptyBody, MalformedBody, TooManyJobs, UnsupportedMediaType
from app.jobs.job import JobState
from app.web.options import RequestOptions, check_model, parse_options
from app.web.service import Service

PROMISE_SECONDS = 60.0  # from admission until the upload's own reservation
_ACCEPTED_TYPES = ("video/*", "application/octet-stream", "multipart/form-data")


class BodyKind(StrEnum):
    RAW = "raw"
    MULTIPART = "multipart"


@dataclass(frozen=True, slots=True)
class UploadHead:
    """What a request says of itself before its body."""

    query: tuple[tuple[str, str], ...]
    content_type: str | None
    content_length: int | None
    chunked: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave to send a body."""

    options: RequestOptions
    model: str
    body_kind: BodyKind
    boundary: bytes  # of a multipart body; else empty


def admit(head: UploadHead, service: Service, *, key: str) -> Admission:
    """Check an upload by its head alone and promise it disk space under `key`.

    Raises the FrameboxError that the caller is to be told: InvalidOption, UnsupportedMediaType, EmptyBody,
    BodyTooLarge, TooManyJobs, EngineUnavailable or InsufficientStorage.
    """
    options = parse_options(head.query)
    model = check_model(options.detection, service.store.engine_status().models, service.limits.default_model)
    body_kind, boundary = _body_kind(head.content_type)
    _check_length(head, service.limits.max_upload_bytes)
    _check_queue(service)
    service.space.reserve(key, head.content_length or 0, seconds=PROMISE_SECONDS)
    return Admission(options, model, body_kind, boundary)


def upload_head(
    query: Iterable[tuple[str, str]], content_type: str | None, content_length: str, transfer_encoding: str
) -> UploadHead:
    """The head of a request, from its headers' values; empty texts where it has none."""
    length = int(content_length) if content_length.isascii() and content_length.isdigit() else None
    return UploadHead(tuple(query), content_type or None, length, "chunked" in transfer_encoding.lower())


def _body_kind(content_type: str | None) -> tuple[BodyKind, bytes]:
    """A body without a type is taken for the video itself: `curl -T` sends none."""
    if content_type is None:
        return BodyKind.RAW, b""
    media_type, parameters = parse_options_header(content_type)
    if media_type.startswith("video/") or media_type == "application/octet-stream":
        return BodyKind.RAW, b""
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(
            "Send the video itself as video/* or application/octet-stream, or a form with a field 'video'. "
            "With curl: -H 'Content-Type: application/octet-stream' --data-binary @FILE, or -F video=@FILE.",
            {"allowed": [*_ACCEPTED_TYPES]},
        )
    boundary = parameters.get("boundary", "")
    if not 1 <= len(boundary) <= 200 or not boundary.isascii():
        raise MalformedBody("The multipart body's type names no boundary.")
    return BodyKind.MULTIPART, boundary.encode()


def _check_length(head: UploadHead, limit_bytes: int) -> None:
    if head.content_length is not None and head.content_length > limit_bytes:
        raise body_too_large(limit_bytes)
    if not head.chunked and not head.content_length:
        raise EmptyBody("The request has no body; send the video.")


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit_bytes} bytes.", {"limit_bytes": limit_bytes})


def _check_queue(service: Service) -> None:
    counts = service.store.counts()
    limit = service.limits.max_active_jobs
    if counts[JobState.QUEUED] + counts[JobState.RUNNING] >= limit:
        raise TooManyJobs(f"{limit} jobs are queued or running.", {"limit": limit, "retry_after_seconds": 30})
