"""Whether a request to ``/v1/uploads`` may send its body: all checks that are possible before it."""

from __future__ import annotations

from collections.abc import Mapping

from flask import g

from app.errors import MethodNotAllowed
from app.web import tus
from app.web.admission import RESERVATION_SECONDS, queued_request
from app.web.head import Query, RequestHead, parse_query
from app.web.service import Service

ADDRESS = "/v1/uploads"
_METHODS_OF_ALL = ("OPTIONS", "POST")
_METHODS_OF_ONE = ("OPTIONS", "HEAD", "PATCH", "DELETE")


def upload_id_of(head: RequestHead) -> str | None:
    """Return the id of the upload that a request names; None for the address of all uploads."""
    return head.path.removeprefix(ADDRESS).strip("/") or None


def method_of(head: RequestHead) -> str:
    """Return the request's method, or its X-HTTP-Method-Override if given. Raises MethodNotAllowed."""
    method = head.headers.get("X-HTTP-Method-Override", head.method).upper()
    allowed = _METHODS_OF_ALL if upload_id_of(head) is None else _METHODS_OF_ONE
    if method not in allowed:
        raise MethodNotAllowed(f"{method[:20]} is not possible here.", {"allowed": [*allowed]})
    return method


def admit_upload_body(head: RequestHead, service: Service, *, key: str) -> None:
    """Check a request before its body, and reserve disk space for a new upload under `key`.

    Raises the FrameboxError that the client gets.
    """
    method, upload_id = method_of(head), upload_id_of(head)
    if method == "OPTIONS":
        return
    tus.check_version(head.headers)
    if method == "POST":
        creation = read_creation(head, service)
        service.uploads.check_count(owner=g.owner)
        service.space.reserve(key, creation.length_bytes or 0, seconds=RESERVATION_SECONDS)
    elif method == "PATCH" and upload_id is not None:
        patch = tus.parse_patch(head.headers, body_bytes=head.body_bytes)
        upload = service.uploads.look(upload_id, owner=g.owner)
        tus.check_patch(upload, patch, limit_bytes=service.limits.max_upload_bytes)


def read_creation(head: RequestHead, service: Service) -> tus.Creation:
    """Return what a POST asks for. The options of a job to be created later are checked now."""
    creation = tus.parse_creation(
        head.headers, limit_bytes=service.limits.max_upload_bytes, body_bytes=head.body_bytes
    )
    tus.metadata_text(creation.metadata, *tus.NAME_KEYS)
    query = detection_query(creation.metadata)
    if query is not None:
        queued_request(query, service, request_id="")
    return creation


def detection_query(metadata: Mapping[str, bytes]) -> Query | None:
    """Return the options of the job that the finished upload becomes; None if it does not become one."""
    text = tus.metadata_text(metadata, "detect")
    return None if text is None else parse_query(text.removeprefix("?"))
