"""One request over one connection, to an address that was checked before.

The name is resolved once, all its addresses are checked, and the connection goes to one of these addresses:
a different DNS answer a moment later has no effect. The certificate and the headers are still checked for the
name. No redirect is followed, no proxy or password is taken from the environment, no content is decoded.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path

import certifi
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ReadTimeoutError
from urllib3.response import HTTPResponse

from app.egress.addresses import Address, AddressRules, parse_address
from app.egress.targets import Target, private_address

Lookup = Callable[[str, int], Sequence[Address]]
_MOST_ADDRESSES = 8  # that are tried for one name
_FAULTS = (HTTPError, HTTPException, OSError, ValueError)  # ValueError: a malformed header

_USUAL_HEADERS = {"User-Agent": "Framebox", "Accept": "*/*", "Connection": "close"}
_LATE = "it took too long to answer"

# The first that matches an error or one of its causes. The texts repeat nothing of the URL.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate is not valid"),
    (ssl.SSLError, "no secure connection could be made"),
    (TimeoutError, "it did not answer in time"),
    (ConnectionRefusedError, "it refuses connections"),
    (OSError, "the connection failed"),
    (ConnectTimeoutError, "it did not answer in time"),
    (ReadTimeoutError, "it did not answer in time"),
)


class Unreachable(Exception):
    """There is no answer, or only a part of one. The text says why and repeats nothing of the URL."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds."""

    connect: float = 10.0  # for each address: to connect, and again for the TLS handshake
    read: float = 15.0  # between two pieces of an answer
    head: float = 30.0  # from the connection to the end of the answer's headers


def look_up(name: str, port: int) -> Sequence[Address]:
    """Return all addresses of `name`, in the system's order. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [*dict.fromkeys(ip_address(str(entry[4][0])) for entry in found)]


def make_trust(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the public authorities, and those in `ca_file` (PEM)."""
    trust = ssl.create_default_context(cafile=certifi.where())
    if ca_file is not None:
        trust.load_verify_locations(ca_file)
    return trust


class Outbound:
    """Makes requests under one set of rules. Thread-safe."""

    def __init__(
        self,
        rules: AddressRules,
        trust: ssl.SSLContext,
        *,
        timeouts: Timeouts | None = None,
        lookup: Lookup = look_up,
    ) -> None:
        self.rules = rules
        self._trust = trust
        self._timeouts = timeouts or Timeouts()
        self._lookup = lookup

    @contextmanager
    def request(
        self, method: str, target: Target, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[HTTPResponse]:
        """Yield the answer with its body unread; read it with `read_piece`.

        Raises TargetRefused if any address of the name is not allowed, Unreachable.
        """
        connection = self._connect(target)
        try:
            with _shut_down_after(connection, self._timeouts.head) as is_late:
                try:
                    connection.timeout = self._timeouts.read
                    connection.sock.settimeout(self._timeouts.read)
                    connection.request(
                        method,
                        target.resource,
                        body=body,
                        headers={**_USUAL_HEADERS, "Host": target.authority, **headers},
                        preload_content=False,
                        decode_content=False,
                    )
                    response = connection.getresponse()
                except _FAULTS as error:
                    raise Unreachable(_LATE if is_late() else _reason(error)) from error
                if is_late():  # headers that were cut off look like complete ones
                    raise Unreachable(_LATE)
            yield response
        finally:
            connection.close()

    def _connect(self, target: Target) -> HTTPConnection:
        """Return a connection to the first address of the target that accepts one; all must be allowed."""
        literal = parse_address(target.host)
        try:
            found = [literal] if literal is not None else [*self._lookup(target.host, target.port)]
        except (OSError, ValueError) as error:
            raise Unreachable("the host's name is not known") from error
        if not found:
            raise Unreachable("the host's name is not known")
        if not self.rules.allows_name(target.host) and not all(map(self.rules.allows, found)):
            raise private_address()
        last: Exception | None = None
        for address in map(str, found[:_MOST_ADDRESSES]):
            if target.scheme == "http":
                connection = HTTPConnection(address, target.port, timeout=self._timeouts.connect)
            else:
                connection = HTTPSConnection(
                    address,
                    target.port,
                    timeout=self._timeouts.connect,
                    server_hostname=target.host,  # for SNI and the certificate, instead of the address
                    ssl_context=self._trust,
                )
            try:
                connection.connect()
            except (HTTPError, OSError) as error:
                connection.close()
                last = error
            else:
                return connection
        raise Unreachable(_reason(last)) from last


def read_piece(response: HTTPResponse, most_bytes: int) -> bytes:
    """Return the next bytes of the body as they arrived; empty at its end. Raises Unreachable."""
    try:
        return response.read1(most_bytes)
    except _FAULTS as error:
        raise Unreachable(_reason(error)) from error


@contextmanager
def _shut_down_after(connection: HTTPConnection, seconds: float) -> Iterator[Callable[[], bool]]:
    """Shut the connection down if the block takes longer: a server may send single bytes forever."""
    late = threading.Event()

    def shut_down(connected: socket.socket) -> None:
        late.set()
        with suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # for TLS too, without its closing messages

    timer = threading.Timer(seconds, shut_down, [connection.sock])
    timer.name, timer.daemon = "shut-down", True
    timer.start()
    try:
        yield late.is_set
    finally:
        timer.cancel()


def _reason(error: BaseException | None) -> str:
    for kind, reason in _REASONS:
        cause = error
        while cause is not None:
            if isinstance(cause, kind):
                return reason
            cause = cause.__cause__
    return "its answer broke off, or is not HTTP"
