"""Health checks of an instance and its programs, for containers and the command line."""

from __future__ import annotations

import http.client
import socket
import sqlite3
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM

import structlog

from app.jobs.database import Database
from app.jobs.heartbeats import SILENT_SECONDS, Heartbeats, why_not_ready
from app.logs import configure_logging
from app.programs.address import ANSWER_SECONDS, Address
from app.programs.processes import die_with_parent
from app.settings import Settings
from app.storage.data_folder import DataFolder

_ASK_EVERY_SECONDS = 0.2
_READY_SECONDS = 300.0  # CUDA and a large model on a slow disk take their time

_log = structlog.get_logger(__name__)


def health(settings: Settings, chosen: Namespace) -> int:
    """Print how the instance is, or the program in the command's name. Return 1 if it is not healthy."""
    data = DataFolder(settings.data)
    match chosen.command:
        case "health-web":
            healthy, answer = ask_web(data.web_socket)
        case "health-engine":
            healthy, answer = look_up_engine(data)
        case "health-courier":
            healthy, answer = look_up_courier(data)
        case _:
            healthy, answer = ask_instance(Address.of(settings))
    sys.stdout.write(f"{answer}\n")
    return 0 if healthy else 1


def announce(settings: Settings, _: Namespace) -> int:
    """Tell the person who started the instance what it waits for, and then its address."""
    die_with_parent(SIGTERM)
    configure_logging("serve", settings.log_level)
    address = Address.of(settings)
    ready, answer = wait_for_instance(
        address,
        DataFolder(settings.data),
        deadline_seconds=_READY_SECONDS,
        tell=lambda reason: sys.stderr.write(f"framebox: waiting: {reason}\n"),
    )
    if not ready:
        _log.error("not ready", seconds=_READY_SECONDS, reason=answer)
        sys.stderr.write(f"framebox: not ready after {_READY_SECONDS:.0f} seconds: {answer}\n")
        return 1
    _log.info("ready", url=address.url)
    sys.stderr.write(
        f"\nFramebox answers at {address.url}\n"
        f"Post a video:  curl -F video=@VIDEO.mp4 {address.url}/v1/detections\n"
        f"Look around:   {address.url}/ shows the jobs, {address.url}/docs the routes\n"
        "Ctrl-C stops everything.\n\n"
    )
    return 0


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


def ask_instance(address: Address) -> tuple[bool, str]:
    """Ask ``/readyz`` through nginx. Return whether the whole instance is ready, and the answer."""
    return _ask(address.connect(), "/readyz")


def ask_web(web_socket: Path) -> tuple[bool, str]:
    """Ask the HTTP workers behind `web_socket` for ``/livez``. Return whether they answer, and what."""
    return _ask(_UnixConnection(web_socket), "/livez")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_SECONDS)
        self.sock.connect(str(self._path))


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
