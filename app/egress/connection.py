"""One request over one connection, to an address that was looked at before.

The name is resolved once, every address that it has is checked, and the connection goes to one of these, not
to the name: what the DNS says a moment later changes nothing. The certificate and the headers are still the
name's. No redirect is followed, no proxy or password is taken from the environment, no content is decoded.
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

from app.egress.addresses import Address, AddressRules
from app.egress.targets import Target, private_address

Lookup = Callable[[str, int], Sequence[Address]]
_MOST_ADDRESSES = 8  # of one name are tried
_FAULTS = (HTTPError, HTTPException, OSError, ValueError)  # ValueError: a header that makes no sense

_USUAL_HEADERS = {"User-Agent": "Framebox", "Accept": "*/*", "Connection": "close"}
_LATE = "it took too long to answer"

# The first that fits an error, or what caused it, in words that repeat nothing of the address.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate is not valid"),
    (ssl.SSLError, "no secure connection could be made"),
    (TimeoutError, "it did not answer in time"),
    (ConnectionRefusedError, "it refuses connections"),
    (OSError, "the connection could not be made, or broke"),
    (ConnectTimeoutError, "it did not answer in time"),
    (ReadTimeoutError, "it did not answer in time"),
)


class Unreachable(Exception):
    """No answer, or only a part of one. The text says why, and repeats nothing of the address."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds."""

    connect: float = 10.0  # for each address: until it is connected, and again until it has shown who it is
    read: float = 15.0  # between two pieces of an answer
    head: float = 30.0  # from the connection to the end of the answer's headers


def look_up(name: str, port: int) -> Sequence[Address]:
    """All addresses of `name`, in the system's order. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [*dict.fromkeys(ip_address(str(entry[4][0])) for entry in found)]


def make_trust(ca_file: Path | None) -> ssl.SSLContext:
    """Whose certificates are believed: the public authorities', and those in `ca_file` (PEM)."""
    trust = ssl.create_default_context(cafile=certifi.where())
    if ca_file is not None:
        trust.load_verify_locations(ca_file)
    return trust


class Outbound:
    """Makes requests under one set of rules. Safe to use from many threads."""

    def __init__(
        self,
        rules: AddressRules,
        trust: ssl.SSLContext,
        *,
        patience: Patience | None = None,
        lookup: Lookup = look_up,
    ) -> None:
        self._rules = rules
        self._trust = trust
        self._patience = patience or Patience()
        self._lookup = lookup

    @property
    def rules(self) -> AddressRules:
        return self._rules

    @contextmanager
    def request(
        self, method: str, target: Target, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[HTTPResponse]:
        """Yield the answer, its body unread: read it with `read_piece`.

        Raises TargetRefused if the name leads to any address that it must not, Unreachable.
        """
        connection = self._connect(target, self.resolve(target))
        try:
            yield self._ask(connection, method, target, headers, body)
        finally:
            connection.close()

    def resolve(self, target: Target) -> Sequence[Address]:
        """The addresses of the target's host, each one checked. Raises TargetRefused, Unreachable."""
        literal = target.address
        try:
            found = [literal] if literal is not None else [*self._lookup(target.host, target.port)]
        except (OSError, ValueError) as error:
            raise Unreachable("the host's name is not known") from error
        if not found:
            raise Unreachable("the host's name is not known")
        if not self._rules.allows_name(target.host) and not all(map(self._rules.allows, found)):
            raise private_address()
        return found[:_MOST_ADDRESSES]

    def _connect(self, target: Target, addresses: Sequence[Address]) -> HTTPConnection:
        """Connect to the first of `addresses` that answers."""
        last: Exception | None = None
        for address in addresses:
            connection = self._new_connection(target, str(address))
            try:
                connection.connect()
            except (HTTPError, OSError) as error:
                connection.close()
                last = error
            else:
                return connection
        raise Unreachable(_reason(last)) from last

    def _new_connection(self, target: Target, address: str) -> HTTPConnection:
        if target.scheme == "http":
            return HTTPConnection(address, target.port, timeout=self._patience.connect)
        return HTTPSConnection(
            address,
            target.port,
            timeout=self._patience.connect,
            server_hostname=target.host,  # for SNI and for the certificate, in place of the address
            ssl_context=self._trust,
        )

    def _ask(
        self,
        connection: HTTPConnection,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> HTTPResponse:
        with _cut_off(connection, self._patience.head) as is_late:
            try:
                connection.timeout = self._patience.read
                connection.sock.settimeout(self._patience.read)
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
            if is_late():  # headers that were cut off read like those of an answer
                raise Unreachable(_LATE)
            return response


def read_piece(response: HTTPResponse, most_bytes: int) -> bytes:
    """The next bytes of the body, as they have come; empty at its end. Raises Unreachable if it broke off."""
    try:
        return response.read1(most_bytes)
    except _FAULTS as error:
        raise Unreachable(_reason(error)) from error


@contextmanager
def _cut_off(connection: HTTPConnection, seconds: float) -> Iterator[Callable[[], bool]]:
    """Cut the connection should the block take longer: a server that sends a byte now and then has no end."""
    late = threading.Event()

    def cut(connected: socket.socket) -> None:
        late.set()
        with suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # of TLS too, without a word to its layer

    timer = threading.Timer(seconds, cut, [connection.sock])
    timer.name, timer.daemon = "cut-off", True
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
    return "its answer broke off, or is no HTTP"
