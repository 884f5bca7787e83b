"""A server of somebody else's, with and without TLS, that does what a test tells it to: well or badly."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme

Behaviour = Callable[["Exchange"], None]


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Exchange:
    """One request, and the means to answer it in any way."""

    def __init__(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        self._handler = handler
        self.request = request

    def send(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_head(status, Content_Length=str(len(body)), **headers)
        self.write(body)

    def send_head(self, status: int, **headers: str) -> None:
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()

    def write(self, data: bytes) -> None:
        with suppress(OSError):  # the other side may leave when it likes
            self._handler.wfile.write(data)
            self._handler.wfile.flush()

    def range_start(self) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.request.headers.get("range", ""))
        return int(match[1]) if match else None


@dataclass
class Origin:
    """The running server. `script` holds what to do with the next requests; then `usual` counts."""

    url: str
    requests: list[Request] = field(default_factory=list)
    script: deque[Behaviour] = field(default_factory=deque)
    usual: Behaviour = lambda exchange: exchange.send(404)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, exchange: Exchange) -> None:
        with self.arrived:
            self.requests.append(exchange.request)
            behaviour = self.script.popleft() if self.script else self.usual
            self.arrived.notify_all()
        behaviour(exchange)

    def wait_for_requests(self, count: int, seconds: float = 30.0) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, seconds), self.requests


@contextmanager
def running_origin(authority: trustme.CA | None = None, *names: str) -> Iterator[Origin]:
    """Yield a server on a free port of 127.0.0.1; with `authority` it speaks TLS, as each of `names`."""
    origin = Origin("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.close_connection = True
            origin.answer(Exchange(self, Request(self.command, self.path, headers, body)))

        do_GET = do_POST = _take  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        scheme = "http"
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(*names).configure_cert(context)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme = "https"
        origin.url = f"{scheme}://{names[0] if names else '127.0.0.1'}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="origin")
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join(10)


@dataclass
class Video:
    """A resource as a well-behaved store has it: an entity tag, ranges, conditions."""

    content: bytes
    etag: str | None = None
    ranges: bool = True

    def __post_init__(self) -> None:
        if self.etag is None:
            self.etag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'

    def serve(self, exchange: Exchange, *, cut_after: int | None = None) -> None:
        """Send what is asked for; break off after `cut_after` bytes of it."""
        start = exchange.range_start() if self.ranges else None
        headers = {"ETag": self.etag} if self.etag else {}
        if start is not None and exchange.request.headers.get("if-range") != self.etag:
            start = None
        if start is not None and start >= len(self.content):
            exchange.send(416, **headers)
            return
        body = self.content[start or 0 :]
        if start is not None:
            headers["Content_Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        exchange.send_head(200 if start is None else 206, Content_Length=str(len(body)), **headers)
        exchange.write(body if cut_after is None else body[:cut_after])

    def cut(self, after: int) -> Behaviour:
        return lambda exchange: self.serve(exchange, cut_after=after)
