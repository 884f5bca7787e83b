"""A request's head: what is known before its body is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from flask import Request
from werkzeug.datastructures import Headers

Query = tuple[tuple[str, str], ...]

_WAIT_LIMIT_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a client's request, received here or described by nginx."""

    method: str
    path: str
    query: Query
    headers: Headers
    content_length: int | None
    is_chunked: bool

    @property
    def body_bytes(self) -> int | None:
        """The length of the body; None if it is chunked."""
        return None if self.is_chunked else self.content_length or 0


def head_of(request: Request) -> RequestHead:
    """Return the head of a request that its client sent here."""
    headers = request.headers
    return RequestHead(
        request.method,
        request.path,
        tuple(request.args.items(multi=True)),
        headers,
        _length(headers.get("Content-Length")),
        "chunked" in headers.get("Transfer-Encoding", "").lower(),
    )


def head_in(headers: Headers) -> RequestHead:
    """Return the head of a client's request that nginx describes in the `headers` of its own."""
    address = urlsplit(headers.get("Framebox-Upload-Uri", ""))
    return RequestHead(
        headers.get("Framebox-Upload-Method", "POST"),
        address.path,
        parse_query(address.query),
        headers,
        _length(headers.get("Framebox-Upload-Length")),
        "chunked" in headers.get("Framebox-Upload-Encoding", "").lower(),
    )


def parse_query(query: str) -> Query:
    """Return the pairs of a query string in order, those with empty values too."""
    return tuple(parse_qsl(query, keep_blank_values=True))


def _length(header: str | None) -> int | None:
    return int(header) if header and header.isascii() and header.isdigit() else None


@dataclass(frozen=True, slots=True)
class Preference:
    """`wait_seconds` None: wait until the end. `applied` is the Preference-Applied header, if any."""

    wait_seconds: float | None
    applied: str | None


def parse_prefer(header: str | None) -> Preference:
    """Read a Prefer header (RFC 7240): whether and how long the client waits. Ignores what it cannot read."""
    tokens = [token.strip().lower() for token in (header or "").split(",")]
    for token in tokens:
        if wait := re.fullmatch(r"wait\s*=\s*\"?(\d{1,9})\"?", token):
            seconds = min(int(wait[1]), _WAIT_LIMIT_SECONDS)
            return Preference(float(seconds), f"wait={seconds}")
    if "respond-async" in tokens:
        return Preference(0.0, "respond-async")
    return Preference(None, None)
