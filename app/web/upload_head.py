"""What a request to ``/v1/uploads`` asks for, as its head tells, and whether it may send its body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from werkzeug.datastructures import Headers

from app.errors import MethodNotAllowed
from app.web.admission import PROMISE_SECONDS, queued_request
from app.web.service import Service
from app.web.tus import (
    NAME_KEYS,
    Creation,
    check_patch,
    check_version,
    metadata_text,
    parse_creation,
    parse_patch,
)

ADDRESS = "/v1/uploads"
_METHODS = {"": ("OPTIONS", "POST"), "one": ("OPTIONS", "HEAD", "PATCH", "DELETE")}


@dataclass(frozen=True, slots=True)
class UploadHead:
    """A request's head. `method` is the one that counts: X-HTTP-Method-Override, if that is there."""

    method: str
    upload_id: str | None  # None: the address of all uploads
    headers: Headers
    body_bytes: int | None  # None: chunked


def head_of_request(method: str, upload_id: str | None, headers: Headers) -> UploadHead:
    """The head of a request that has come to a view."""
    return _head(method, upload_id, headers, headers.get("Content-Length"), headers.get("Transfer-Encoding"))


def head_of_nginx(headers: Headers) -> UploadHead:
    """The head of the request about which nginx asks."""
    path = urlsplit(headers.get("Framebox-Upload-Uri", "")).path
    name = path.removeprefix(ADDRESS).strip("/")
    return _head(
        headers.get("Framebox-Upload-Method", ""),
        name or None,
        headers,
        headers.get("Framebox-Upload-Length"),
        headers.get("Framebox-Upload-Encoding"),
    )


def _head(
    method: str, upload_id: str | None, headers: Headers, length: str | None, encoding: str | None
) -> UploadHead:
    counts = headers.get("X-HTTP-Method-Override", method).upper()
    body_bytes = int(length) if length and length.isascii() and length.isdigit() else 0
    is_chunked = "chunked" in (encoding or "").lower()
    return UploadHead(counts, upload_id, headers, None if is_chunked else body_bytes)


def check_method(head: UploadHead) -> None:
    """Raise MethodNotAllowed for what cannot be done at the address."""
    allowed = _METHODS["" if head.upload_id is None else "one"]
    if head.method not in allowed:
        raise MethodNotAllowed(f"{head.method[:20]} is not possible here.", {"allowed": [*allowed]})


def admit_upload_body(head: UploadHead, service: Service, *, key: str) -> None:
    """Check all that can be known before the body; promise a new upload disk space under `key`.

    Raises the error that the caller is to be told.
    """
    check_method(head)
    if head.method == "OPTIONS":
        return
    check_version(head.headers)
    if head.method == "POST":
        creation = read_creation(head, service)
        service.uploads.check_count()
        service.space.reserve(key, creation.length_bytes or 0, seconds=PROMISE_SECONDS)
    elif head.method == "PATCH" and head.upload_id is not None:
        patch = parse_patch(head.headers, body_bytes=head.body_bytes)
        check_patch(service.uploads.look(head.upload_id), patch, limit_bytes=service.limits.max_upload_bytes)


def read_creation(head: UploadHead, service: Service) -> Creation:
    """What a POST asks for; a job that it wants to be started later is checked now."""
    creation = parse_creation(
        head.headers, limit_bytes=service.limits.max_upload_bytes, body_bytes=head.body_bytes
    )
    metadata_text(creation.metadata, *NAME_KEYS)
    query = detection_query(creation.metadata)
    if query is not None:
        queued_request(query, service, request_id="")
    return creation


def detection_query(metadata: Mapping[str, bytes]) -> list[tuple[str, str]] | None:
    """The options of the job that the upload is to become by itself; None if it is not to."""
    text = metadata_text(metadata, "detect")
    return None if text is None else parse_qsl(text.removeprefix("?"), keep_blank_values=True)
