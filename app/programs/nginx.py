"""Renders the configuration of nginx from ``deploy/nginx.conf`` and the settings."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app import errors
from app.errors import FrameboxError
from app.settings import BODY_BUFFER_BYTES, CHECKOUT, MIB, Settings, SettingsFault
from app.storage.bodies import FOLDER_NAMES, NO_BODY_FOLDER
from app.storage.data_folder import DataFolder

TEMPLATE = CHECKOUT / "deploy" / "nginx.conf"

_RETRY_SECONDS = 5
_SMALL_BODY_BYTES = MIB  # client_max_body_size of all requests but uploads
_WORKERS = 4
_FILES_A_CONNECTION = 4  # the client's socket, the application's, a body or a document, and one to spare
_AFTER_THE_WAIT_SECONDS = 60  # the application answers a waiting client before nginx gives up

# Headers that clients must not set: nginx sets each of them for the application, or empties it.
_FORWARDED = {
    "Connection": '""',
    "Host": "$host",
    "X-Request-ID": "$request_id",
    "X-Forwarded-For": "$remote_addr",
    "X-Forwarded-Proto": "$client_scheme",
    "Framebox-Accel": "1",
    "Framebox-Request-Path": "$request_path",
    "Framebox-Upload-Method": '""',
    "Framebox-Upload-Uri": '""',
    "Framebox-Upload-Length": '""',
    "Framebox-Upload-Encoding": '""',
    "Framebox-Upload-Spooled": '""',
    "Framebox-Body-File": '""',
}
_ADMIT = _FORWARDED | {
    "Content-Length": '""',
    "Transfer-Encoding": '""',
    "Framebox-Upload-Method": "$request_method",
    "Framebox-Upload-Uri": "$request_uri",
    "Framebox-Upload-Length": "$http_content_length",
    "Framebox-Upload-Encoding": "$http_transfer_encoding",
    "Framebox-Upload-Spooled": "$is_spooled",
}
_BODY = _ADMIT | {"Framebox-Body-File": "$request_body_file"}

# Refusals are literals in the configuration: only those leave the body unread and reach every client.
_ADMISSION = (
    "auth_request_set $refusal_status $upstream_http_framebox_refusal_status;",
    "auth_request_set $refusal_code $upstream_http_framebox_refusal_code;",
    "auth_request_set $refusal_problem $upstream_http_framebox_refusal_problem;",
    "auth_request_set $refusal_retry_after $upstream_http_retry_after;",
    "auth_request_set $refusal_allow $upstream_http_allow;",
    "auth_request_set $refusal_tus $upstream_http_tus_resumable;",
    "auth_request_set $refusal_origin $upstream_http_access_control_allow_origin;",
    "auth_request_set $earlier_job $upstream_http_framebox_earlier_job;",
)

# Headers of the application's answer that nginx would drop when it sends a document instead.
_DOCUMENT_HEADERS = (
    "ETag",
    "Vary",
    "Repr-Digest",
    "Unencoded-Digest",
    "Link",
    "Framebox-Job",
    "Framebox-Frames",
    "Framebox-Complete",
    "Preference-Applied",
    "Framebox-Attached",
)

_TOO_MANY_REQUESTS = (
    "Too many requests are running, from this address or in total; with Prefer: respond-async, none waits."
)

# Mozilla's "intermediate" recommendation, version 5.7: every client of the last ten years, forward secrecy.
_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)

# Every status with which the application may refuse an upload: `return` of nginx takes only literals.
_REFUSAL_STATUSES = (400, 403, 404, 405, 409, 410, 411, 412, 413, 415, 422, 429, 500, 503, 507)


def render_nginx_conf(settings: Settings) -> str:
    """Return the configuration of the instance, for an nginx that the current user starts.

    Raises SettingsFault if a path cannot be written in the configuration language of nginx.
    """
    folder = DataFolder(settings.data)
    faults = _faults(settings.max_upload_bytes)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    words = {
        "USER": _user_line(),
        "NGINX": _quotable("FRAMEBOX_DATA", folder.nginx),
        "NO_BODY_FOLDER": _quotable("FRAMEBOX_DATA", folder.bodies / NO_BODY_FOLDER),
        "JOBS": _quotable("FRAMEBOX_DATA", folder.jobs),
        "WEB_SOCKET": _quotable("FRAMEBOX_DATA", folder.web_socket),
        "OWN_SOCKET": _quotable("FRAMEBOX_DATA", folder.nginx_socket),
        "LISTEN": f"{host}:{settings.port}{' ssl' if settings.tls_certificate else ''}",
        "TLS": _lines(8, _tls(settings)),
        "TRUSTED_PROXIES": _lines(8, _trusted_proxies(settings)),
        **_limits(settings),
        "PROXY_HEADERS": _lines(
            8, (f"proxy_set_header {name} {value};" for name, value in _FORWARDED.items())
        ),
        "ADMIT_HEADERS": _lines(12, (f"proxy_set_header {name} {value};" for name, value in _ADMIT.items())),
        "DOCUMENT_HEADERS": _lines(
            12,
            [
                "etag off;   # the application's is the document's digest",
                *(
                    f"add_header {name} $upstream_http_{name.lower().replace('-', '_')};"
                    for name in _DOCUMENT_HEADERS
                ),
                "add_header X-Request-ID $request_id;",
            ],
        ),
        "ADMISSION": _lines(12, ("auth_request /_admit;", *_ADMISSION)),
        "UPLOADS_ADMISSION": _lines(12, ("auth_request /_admit_upload;", *_ADMISSION)),
        "BODY_HEADERS": _lines(12, (f"proxy_set_header {name} {value};" for name, value in _BODY.items())),
        "BODY_FOLDERS": _lines(12, (line for name in FOLDER_NAMES for line in _body_location(folder, name))),
        "ERROR_PAGES": _lines(8, (_error_page(fault) for fault in faults if fault.place == "")),
        "UPLOAD_ERROR_PAGES": _lines(12, _upload_error_pages(faults)),
        "BODY_ERROR_PAGES": _lines(
            12, _upload_error_pages(fault for fault in faults if fault.nginx_status not in (500, 503))
        ),
        "REFUSALS": _lines(
            12,
            (
                f"if ($refusal_status = {status}) {{ return {status} $refusal_problem; }}"
                for status in _REFUSAL_STATUSES
            ),
        ),
        "PROBLEMS": _lines(8, (line for fault in faults for line in fault.location())),
    }
    return re.sub(r"@([A-Z_]+)@", lambda match: words[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def _limits(settings: Settings) -> dict[str, str]:
    connections = -(-settings.max_connections // _WORKERS)
    limits = {
        "WORKERS": _WORKERS,
        "WORKER_CONNECTIONS": connections,
        "WORKER_FILES": connections * _FILES_A_CONNECTION,
        "MAX_UPLOAD_BYTES": settings.max_upload_bytes,
        "SMALL_BODY_BYTES": _SMALL_BODY_BYTES,
        "BODY_BUFFER_BYTES": BODY_BUFFER_BYTES,
        "LONG_REQUESTS": settings.http_threads // 2,  # see app/web/waiting.py
        "RAW_UPLOADS": settings.max_raw_uploads,
        "OVERFLOW_UPLOADS": settings.overflow_uploads(),
        "CLIENT_OVERFLOW_UPLOADS": -(-settings.overflow_uploads() // 2),
        "CLIENT_LONG_REQUESTS": settings.client_long_requests,
        "CLIENT_CONNECTIONS": settings.client_connections,
        "CLIENT_HEADER_SECONDS": settings.client_header_seconds,
        "CLIENT_IDLE_SECONDS": settings.client_idle_seconds,
        "ANSWER_SECONDS": settings.max_wait_seconds + _AFTER_THE_WAIT_SECONDS,
    }
    return {name: str(value) for name, value in limits.items()}


@dataclass(frozen=True, slots=True)
class _Fault:
    """An answer of nginx itself. `place` distinguishes two answers to one status."""

    nginx_status: int  # 494 and the like are nginx' own and never go out
    error: FrameboxError
    place: str = ""

    @property
    def address(self) -> str:
        return f"/_problem/{self.nginx_status}{self.place}"

    def location(self) -> list[str]:
        document = json.dumps(self.error.to_problem() | {"request_id": "$request_id"})
        literal = document.replace("\\", "\\\\").replace("'", "\\'")  # for single quotes
        retry_after = self.error.extensions.get("retry_after_seconds")
        return [
            f"location = {self.address} {{",
            "    internal;",
            "    client_max_body_size 0;",
            "    default_type application/problem+json;",
            "    add_header X-Request-ID $request_id always;",
            "    add_header Cache-Control no-store always;",
            *([f"    add_header Retry-After {retry_after} always;"] if retry_after else []),
            f"    return {self.error.status} '{literal}';",
            "}",
        ]


def _faults(max_upload_bytes: int) -> list[_Fault]:
    retry = {"retry_after_seconds": _RETRY_SECONDS}
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
        _Fault(503, errors.Busy(_TOO_MANY_REQUESTS, retry)),
        _Fault(504, errors.GatewayTimeout("The service did not answer in time.", retry)),
        _Fault(505, errors.BadRequest("This version of HTTP is not spoken here.")),
    ]


def _too_large(limit_bytes: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"The body is longer than {limit_bytes} bytes.", {"limit_bytes": limit_bytes})


def _error_page(fault: _Fault) -> str:
    return f"error_page {fault.nginx_status} ={fault.error.status} {fault.address};"


def _body_location(folder: DataFolder, name: str) -> list[str]:
    return [
        f"location = /_body/{name} {{",
        f'    client_body_temp_path "{_quotable("FRAMEBOX_DATA", folder.bodies / name)}";',
        "    proxy_pass http://http_workers/_internal/body;",
        "}",
    ]


def _upload_error_pages(some_faults: Iterable[_Fault]) -> list[str]:
    """Return all error pages for a location with its own 413: with one of its own, it inherits none."""
    faults = [*some_faults]
    special = {fault.nginx_status for fault in faults if fault.place}
    chosen = (fault for fault in faults if fault.place or fault.nginx_status not in special)
    return [_error_page(fault) for fault in chosen]


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _user_line() -> str:
    """Return the user directive: as root, nginx would run its workers as a user without the data."""
    return f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else "# user: the one that started it"


def _tls(settings: Settings) -> list[str]:
    if settings.tls_certificate is None or settings.tls_key is None:
        return ["# no TLS: see FRAMEBOX_TLS_CERTIFICATE"]
    return [
        f'ssl_certificate "{_quotable("FRAMEBOX_TLS_CERTIFICATE", settings.tls_certificate)}";',
        f'ssl_certificate_key "{_quotable("FRAMEBOX_TLS_KEY", settings.tls_key)}";',
        "ssl_protocols TLSv1.2 TLSv1.3;",
        f"ssl_ciphers {_CIPHERS};",
        "ssl_prefer_server_ciphers off;",
        "ssl_session_cache shared:tls:10m;",
        "ssl_session_timeout 1d;",
        "ssl_session_tickets off;",
    ]


def _trusted_proxies(settings: Settings) -> list[str]:
    """Return the directives for proxies: the client is the last address that is not a trusted proxy.

    nginx is a proxy of itself: see @overflow in the template.
    """
    trusted = [f"set_real_ip_from {network};" for network in ("unix:", *settings.trusted_proxies)]
    return [*trusted, "real_ip_header X-Forwarded-For;", "real_ip_recursive on;"]


def _quotable(setting: str, path: Path) -> str:
    """Return the path escaped for double quotes in the configuration, which cannot hold a dollar sign."""
    text = str(path)
    if re.search(r"[$\x00-\x1f\x7f]", text):
        raise SettingsFault(f"{setting}: the path holds a dollar sign or a control character")
    return text.replace("\\", "\\\\").replace('"', '\\"')
