"""A request's head: what is known of a request before its body."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from flask import Request
from werkzeug.datastructures import Headers

Query = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a client's request, whether it came here or nginx describes it."""

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
    """Return the head of a request that came from its client."""
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
    """Return the head that nginx describes in the `headers` of a request of its own."""
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
    """Return the pairs of a query string, with empty values and in their order."""
    return tuple(parse_qsl(query, keep_blank_values=True))


def _length(header: str | None) -> int | None:
    return int(header) if header and header.isascii() and header.isdigit() else None
