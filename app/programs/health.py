"""Health checks of an instance and its programs, for containers and the command line."""

from __future__ import annotations

import http.client
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.jobs.database import Database
from app.jobs.heartbeats import SILENT_SECONDS, Heartbeats, why_not_ready
from app.storage.data_folder import DataFolder

EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not listened on
_ASK_EVERY_SECONDS = 0.2
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance listens; with HTTPS if it has a certificate."""

    host: str
    port: int
    certificate: Path | None = None

    @property
    def url(self) -> str:
        """The URL for programs on this machine."""
        name = reachable(self.host)
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{f'[{name}]' if ':' in name else name}:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that is not opened yet."""
        name = reachable(self.host)
        if self.certificate is None:
            return http.client.HTTPConnection(name, self.port, timeout=_ANSWER_SECONDS)
        # Trust only this certificate, whatever its names are: the instance is asked as localhost.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(self.certificate)
        return http.client.HTTPSConnection(name, self.port, timeout=_ANSWER_SECONDS, context=context)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_SECONDS)
        self.sock.connect(str(self._path))


def ask_instance(address: Address) -> tuple[bool, str]:
    """Ask ``/readyz`` through nginx. Return whether the whole instance is ready, and the answer."""
    return _ask(address.connect(), "/readyz")


def ask_web(web_socket: Path) -> tuple[bool, str]:
    """Ask the HTTP workers behind `web_socket` for ``/livez``. Return whether they answer, and what."""
    return _ask(_UnixConnection(web_socket), "/livez")


def look_up_engine(data: DataFolder) -> tuple[bool, str]:
    """Return whether the engine is ready by its last report, and why it is not."""
    if not data.database.exists():
        return False, "the engine has not started yet"
    try:
        status = Heartbeats(Database(data.database)).engine()
    except sqlite3.OperationalError as error:  # it is being created, or locked for longer than usual
        return False, f"the database cannot be read: {error}"
    reason = why_not_ready(status, now=time.time())
    return reason is None, reason or "the engine is ready"


def look_up_courier(data: DataFolder) -> tuple[bool, str]:
    """Return whether the courier has sent its heartbeat, and when."""
    if not data.database.exists():
        return False, "no courier has started on this data folder yet"
    try:
        silent_seconds = time.time() - Heartbeats(Database(data.database)).courier_at()
    except sqlite3.OperationalError as error:
        return False, f"the database cannot be read: {error}"
    return silent_seconds <= SILENT_SECONDS, f"last heard of {silent_seconds:.0f} s ago"


def wait_for_instance(
    address: Address, data: DataFolder, *, deadline_seconds: float, tell: Callable[[str], object]
) -> tuple[bool, str]:
    """Wait until the instance is ready, or for `deadline_seconds`. Return the last answer.

    `tell` is called with the reason for waiting, whenever it changes. ``/readyz`` is requested only once a
    worker can answer, else nginx would log an error.
    """
    deadline, last = time.monotonic() + deadline_seconds, ""
    while True:
        ready, answer = look_up_engine(data)
        if not ready and (stage := answer.partition(":")[0]) != last:
            tell(stage)
            last = stage
        if ready:
            ready, answer = ask_instance(address) if data.web_socket.exists() else (False, "no HTTP worker")
        if ready or time.monotonic() >= deadline:
            return ready, answer
        time.sleep(_ASK_EVERY_SECONDS)


def reachable(host: str) -> str:
    """Return the name at which this machine reaches what listens on `host`."""
    return "localhost" if host in EVERY_ADDRESS else host


def _ask(connection: http.client.HTTPConnection, path: str) -> tuple[bool, str]:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(65_536).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer: {error}"
    finally:
        connection.close()
    return answer.status == http.client.OK, body
