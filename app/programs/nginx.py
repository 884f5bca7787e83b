"""nginx, and its configuration, rendered from ``deploy/nginx.conf``, a Jinja template, and the settings."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from jinja2 import Environment, StrictUndefined

from app import errors
from app.errors import FrameboxError
from app.programs.preflight import find_nginx
from app.programs.start import execute
from app.settings import BODY_BUFFER_BYTES, CHECKOUT, MIB, Settings, SettingsFault
from app.storage.bodies import FOLDER_NAMES, NO_BODY_FOLDER, BodyFolders
from app.storage.data_folder import DataFolder

TEMPLATE = CHECKOUT / "deploy" / "nginx.conf"

_RETRY_SECONDS = 5
_SMALL_BODY_BYTES = MIB  # client_max_body_size of all requests but uploads
_WORKERS = 4
_FILES_A_CONNECTION = 4  # the client's socket, the application's, a body or a document, and one to spare
_AFTER_THE_WAIT_SECONDS = 60  # the application answers a waiting client before nginx gives up


def run(settings: Settings, _: Namespace) -> NoReturn:
    """Render the configuration and become the master of nginx."""
    data = DataFolder(settings.data)
    BodyFolders(data).remove_all()  # of an earlier nginx, which has ended: this process holds its lock
    data.nginx_socket.unlink(missing_ok=True)  # a killed nginx leaves it behind, and blocks the next one
    configuration = data.run / "nginx.conf"
    configuration.write_text(render_nginx_conf(settings), encoding="utf-8")
    program = find_nginx()
    # A reader turns the plain lines of nginx on standard error into JSON. Writing never blocks nginx: if the
    # reader is stopped or dead, lines are lost.
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    subprocess.Popen([sys.executable, "-m", "app.programs.log_lines"], stdin=source, cwd=CHECKOUT)
    os.close(source)
    os.dup2(sink, 2)
    os.close(sink)
    execute(program, "-e", "stderr", "-p", str(data.run), "-c", str(configuration))


def print_configuration(settings: Settings, _: Namespace) -> None:
    """Write the configuration to standard output."""
    sys.stdout.write(render_nginx_conf(settings))


def render_nginx_conf(settings: Settings) -> str:
    """Return the configuration of the instance, for an nginx that the current user starts.

    Raises SettingsFault if a path cannot be written in the configuration language of nginx.
    """
    environment = Environment(  # noqa: S701 - this is not HTML
        trim_blocks=True, keep_trailing_newline=True, line_comment_prefix="##", undefined=StrictUndefined
    )
    environment.filters["quotable"] = _quotable
    faults = _faults(settings.max_upload_bytes)
    own_pages = {fault.nginx_status for fault in faults if fault.place}
    connections = -(-settings.max_connections // _WORKERS)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings=settings,
        folder=DataFolder(settings.data),
        no_body_folder=NO_BODY_FOLDER,
        body_folders=FOLDER_NAMES,
        user=pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None,
        listen=f"{host}:{settings.port}{' ssl' if settings.tls_certificate else ''}",
        trusted_proxies=("unix:", *settings.trusted_proxies),
        workers=_WORKERS,
        worker_connections=connections,
        worker_files=connections * _FILES_A_CONNECTION,
        small_body_bytes=_SMALL_BODY_BYTES,
        body_buffer_bytes=BODY_BUFFER_BYTES,
        long_requests=settings.http_threads // 2,  # see app/web/waiting.py
        overflow_uploads=settings.overflow_uploads(),
        client_overflow_uploads=-(-settings.overflow_uploads() // 2),
        answer_seconds=settings.max_wait_seconds + _AFTER_THE_WAIT_SECONDS,
        faults=faults,
        upload_faults=[fault for fault in faults if fault.place or fault.nginx_status not in own_pages],
    )


@dataclass(frozen=True, slots=True)
class _Fault:
    """An answer of nginx itself. `place` distinguishes two answers to one status."""

    nginx_status: int  # 494 and the like are internal to nginx and are never sent
    error: FrameboxError
    place: str = ""

    @property
    def address(self) -> str:
        return f"/_problem/{self.nginx_status}{self.place}"

    @property
    def retry_after_seconds(self) -> int | None:
        seconds: int | None = self.error.extensions.get("retry_after_seconds")
        return seconds

    @property
    def literal(self) -> str:
        """The problem document, to be put between single quotes in the language of nginx."""
        document = json.dumps(self.error.to_problem() | {"request_id": "$request_id"})
        return document.replace("\\", "\\\\").replace("'", "\\'")


def _faults(max_upload_bytes: int) -> list[_Fault]:
    retry = {"retry_after_seconds": _RETRY_SECONDS}
    busy = "Too many requests are running, from this address or in total; with Prefer: respond-async, "
    busy += "none waits."
    return [
        _Fault(400, errors.BadRequest("The request is not valid HTTP.")),
        _Fault(404, errors.RouteNotFound("There is no route at this address.")),
        _Fault(405, errors.MethodNotAllowed("This method is not possible here.")),
        _Fault(411, errors.LengthRequired("The request needs a Content-Length.")),
        _Fault(413, _too_large(_SMALL_BODY_BYTES)),
        _Fault(413, _too_large(max_upload_bytes), "_upload"),
        _Fault(414, errors.AddressTooLong("The address is too long.")),
        _Fault(416, errors.RangeNotSatisfiable("The document has no such range.")),
        _Fault(494, errors.BadRequest("The request's headers are too large.")),
        _Fault(497, errors.BadRequest("This port speaks HTTPS: the address begins with https://.")),
        _Fault(500, errors.InternalError("Something went wrong here.")),
        _Fault(501, errors.BadRequest("This transfer encoding is not known here.")),
        _Fault(502, errors.BadGateway("The service is being restarted.", retry)),
        _Fault(503, errors.Busy(busy, retry)),
        _Fault(504, errors.GatewayTimeout("The service did not answer in time.", retry)),
        _Fault(505, errors.BadRequest("This version of HTTP is not spoken here.")),
    ]


def _too_large(limit_bytes: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"The body is longer than {limit_bytes} bytes.", {"limit_bytes": limit_bytes})


def _quotable(path: Path, setting: str = "FRAMEBOX_DATA") -> str:
    """Return the path as it stands between double quotes for nginx, which cannot write a dollar sign."""
    text = str(path)
    if re.search(r"[$\x00-\x1f\x7f]", text):
        raise SettingsFault(f"{setting}: the path holds a dollar sign or a control character")
    return text.replace("\\", "\\\\").replace('"', '\\"')
