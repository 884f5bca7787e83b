"""What must hold before an instance starts, and what to do where it does not: every fault at once."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
from collections.abc import Callable

from app.egress.connection import make_trust
from app.settings import Settings
from app.storage.data_folder import DataFolder

LONGEST_SOCKET_PATH_BYTES = 107  # sizeof(sun_path) less the closing NUL, unix(7)
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/nginx/sbin")


class StartFault(Exception):
    """The instance cannot start; the text says why and what to do, a fault a line."""


def find_nginx() -> str:
    """Return nginx' path. StartFault with what to do if there is none."""
    folders = [*os.get_exec_path(), *_SYSTEM_FOLDERS]
    found = shutil.which("nginx", path=os.pathsep.join(folders))
    if found is None:
        raise StartFault(
            "nginx is not installed. On Debian and Ubuntu: apt-get install nginx (as root); "
            "elsewhere nginx 1.22 or later from the system's packages, in PATH"
        )
    return found


def check_socket_path(data: DataFolder) -> None:
    """StartFault if the socket in the run folder would have a longer name than Linux allows."""
    excess = len(os.fsencode(data.web_socket)) - LONGEST_SOCKET_PATH_BYTES
    if excess > 0:
        raise StartFault(
            f"FRAMEBOX_DATA: {data.root} is too long by {excess} bytes for the socket that lies in it; "
            "choose a shorter path, or a link to this one"
        )


def check_folders(settings: Settings) -> None:
    """StartFault if a folder that the administrator named is not there to be read."""
    named = [("FRAMEBOX_MODELS", settings.models)] if settings.models else []
    named += [("FRAMEBOX_INGEST", folder) for folder in settings.ingest]
    missing = _unreadable_list(settings)
    missing += [
        f"{name}: {folder} is not a directory this user can read"
        for name, folder in named
        if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir()
    ]
    if missing:
        raise StartFault("\n".join(missing))


def check_ca_file(settings: Settings) -> None:
    """StartFault if the certificates of an authority of one's own cannot be read."""
    try:
        make_trust(settings.ca_file)
    except OSError as error:  # ssl.SSLError is one
        why = (
            f"holds no certificates in PEM form: {error}"
            if isinstance(error, ssl.SSLError)
            else error.strerror
        )
        raise StartFault(f"FRAMEBOX_CA_FILE: {settings.ca_file}: {why}") from error


def check_tls(settings: Settings) -> None:
    """StartFault if the certificate or its key cannot be used, or do not belong together."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    named = {"FRAMEBOX_TLS_CERTIFICATE": settings.tls_certificate, "FRAMEBOX_TLS_KEY": settings.tls_key}
    unreadable = [
        f"{name}: {path} is not a file this user can read"
        for name, path in named.items()
        if not path.is_file() or not os.access(path, os.R_OK)
    ]
    if unreadable:
        raise StartFault("\n".join(unreadable))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_certificate, settings.tls_key, password=_no_password
        )
    except ssl.SSLError as error:
        raise StartFault(_tls_fault(settings, error)) from error


def _no_password() -> str:
    """Asked for where a key is encrypted: OpenSSL would else ask at the terminal."""
    return ""


def _tls_fault(settings: Settings, error: ssl.SSLError) -> str:
    certificate, key = settings.tls_certificate, settings.tls_key
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"FRAMEBOX_TLS_KEY: {key} is not the key of the certificate {certificate}"
    return (
        f"FRAMEBOX_TLS_CERTIFICATE, FRAMEBOX_TLS_KEY: {certificate} and {key} are no certificate and "
        f"unencrypted key in PEM ({error.reason or 'not readable'})"
    )


def _unreadable_list(settings: Settings) -> list[str]:
    path = settings.model_hashes
    if path is None or (path.is_file() and os.access(path, os.R_OK)):
        return []
    return [f"FRAMEBOX_MODEL_HASHES: {path} is not a file this user can read"]


def check_port(host: str, port: int) -> None:
    """StartFault if nginx could not listen on `host`:`port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nginx does
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            raise StartFault(_port_fault(host, port, error)) from error


def _port_fault(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            advice = f"is taken by another program; stop it, or choose another port: FRAMEBOX_PORT={port + 1}"
        case errno.EACCES:
            advice = "may not be used by this user; choose one above 1023, such as FRAMEBOX_PORT=8080"
        case _:
            advice = f"cannot be listened on: {error.strerror}"
    return f"port {port} of {host} {advice}"


def make_data_folder(data: DataFolder) -> None:
    """Create the data folder. StartFault if it cannot be, or cannot be written."""
    try:
        data.create()
    except OSError as error:
        raise StartFault(f"FRAMEBOX_DATA: {data.root} cannot be made or written: {error.strerror}") from error
    if not os.access(data.root, os.R_OK | os.W_OK | os.X_OK):
        raise StartFault(f"FRAMEBOX_DATA: {data.root} cannot be written by this user")


def check_all(checks: list[Callable[[], object]]) -> None:
    """Run every check, then raise one StartFault with all that was found."""
    faults = []
    for check in checks:
        try:
            check()
        except StartFault as fault:
            faults.append(str(fault))
    if faults:
        raise StartFault("\n".join(faults))
