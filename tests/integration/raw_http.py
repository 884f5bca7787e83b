"""HTTP by hand, for requests that no library would send."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from typing import Any

TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class RawAnswer:
    """What came back. `status` 0: nothing did."""

    received: bytes

    @property
    def continued(self) -> bool:
        """Whether the server asked for the body."""
        return self.received.startswith(b"HTTP/1.1 100")

    @property
    def _final(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2] if self.continued else self.received

    @property
    def status(self) -> int:
        return int(self._final.split(b" ", 2)[1]) if self._final else 0

    @property
    def headers(self) -> dict[str, str]:
        lines = self._final.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def body(self) -> bytes:
        return self._final.partition(b"\r\n\r\n")[2]

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self.received[:500]
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["status"] == self.status
        return problem


def exchange(port: int, request: bytes, *, half_close: bool = False) -> RawAnswer:
    """Send `request` and return all that comes until the answer is whole or the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then the answer is already there
            connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while not _is_whole(received):
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                break
            if not piece:
                break
            received += piece
    return RawAnswer(received)


def _is_whole(received: bytes) -> bool:
    answer = RawAnswer(received)
    if b"\r\n\r\n" not in answer._final:
        return False
    return len(answer.body) >= int(answer.headers.get("content-length", 1 << 60))


def post_head(query: str = "", content_type: str = "video/mp4", *headers: str) -> bytes:
    """The head of a POST up to, and without, the empty line."""
    lines = [
        f"POST /v1/detections{query} HTTP/1.1",
        "Host: test",
        f"Content-Type: {content_type}",
        *headers,
        "",
    ]
    return "\r\n".join(lines).encode()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
