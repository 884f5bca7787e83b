"""Checks before an instance starts. All faults are reported at once, each with what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from app.settings import MIB, Settings
from app.storage.data_folder import DataFolder

LONGEST_SOCKET_PATH_BYTES = 107  # sizeof(sun_path) less the closing NUL, unix(7)
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/nginx/sbin")


class StartFault(Exception):
    """The instance cannot start; the text says why and what to do, one fault per line."""


def find_nginx() -> str:
    """Return the path of nginx. StartFault if it is not installed."""
    folders = [*os.get_exec_path(), *_SYSTEM_FOLDERS]
    found = shutil.which("nginx", path=os.pathsep.join(folders))
    if found is None:
        raise StartFault(
            "nginx is not installed. On Debian and Ubuntu: apt-get install nginx (as root); "
            "elsewhere nginx 1.22 or later from the system's packages, in PATH"
        )
    return found


def check_socket_path(data: DataFolder) -> None:
    """StartFault if the path of the socket in the run folder is longer than Linux allows."""
    excess = len(os.fsencode(data.web_socket)) - LONGEST_SOCKET_PATH_BYTES
    if excess > 0:
        raise StartFault(
            f"FRAMEBOX_DATA: {data.root} is too long by {excess} bytes for the socket in it; "
            "choose a shorter path, or a link to this one"
        )


def check_folders(settings: Settings) -> None:
    """StartFault if a folder or list that the administrator named cannot be read."""
    folders = [("FRAMEBOX_MODELS", settings.models)] if settings.models else []
    folders += [("FRAMEBOX_INGEST", folder) for folder in settings.ingest]
    files = [("FRAMEBOX_MODEL_HASHES", settings.model_hashes)] if settings.model_hashes else []
    _check_readable(files, folders)


def _check_readable(files: Sequence[tuple[str, Path]], folders: Sequence[tuple[str, Path]] = ()) -> None:
    faults = [
        f"{setting}: {path} is not a file this user can read"
        for setting, path in files
        if not path.is_file() or not os.access(path, os.R_OK)
    ]
    faults += [
        f"{setting}: {path} is not a directory this user can read"
        for setting, path in folders
        if not os.access(path, os.R_OK | os.X_OK) or not path.is_dir()
    ]
    if faults:
        raise StartFault("\n".join(faults))


def check_ca_file(settings: Settings) -> None:
    """StartFault if the file of further certificate authorities cannot be read."""
    if settings.ca_file is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(settings.ca_file)
    except OSError as error:  # ssl.SSLError is one
        is_read = isinstance(error, ssl.SSLError)
        why = f"holds no certificates in PEM form: {error}" if is_read else error.strerror
        raise StartFault(f"FRAMEBOX_CA_FILE: {settings.ca_file}: {why}") from error


def check_tls(settings: Settings) -> None:
    """StartFault if the certificate or its key cannot be used, or if they do not match."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return
    _check_readable([("FRAMEBOX_TLS_CERTIFICATE", certificate), ("FRAMEBOX_TLS_KEY", key)])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certificate,
            key,
            password=lambda: "",  # else OpenSSL asks for the password at the terminal
        )
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            fault = f"FRAMEBOX_TLS_KEY: {key} is not the key of the certificate {certificate}"
        else:
            fault = (
                f"FRAMEBOX_TLS_CERTIFICATE, FRAMEBOX_TLS_KEY: {certificate} and {key} are not a certificate "
                f"and an unencrypted key in PEM ({error.reason or 'not readable'})"
            )
        raise StartFault(fault) from error


def check_port(host: str, port: int) -> None:
    """StartFault if nginx could not listen on `host`:`port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nginx does
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            match error.errno:
                case errno.EADDRINUSE:
                    advice = "is taken by another program; stop it, or choose another port: "
                    advice += f"FRAMEBOX_PORT={port + 1}"
                case errno.EACCES:
                    advice = "may not be used by this user; choose one above 1023: FRAMEBOX_PORT=8080"
                case _:
                    advice = f"cannot be used: {error.strerror}"
            raise StartFault(f"port {port} of {host} {advice}") from error


def make_data_folder(data: DataFolder) -> None:
    """Create the data folder. StartFault if it cannot be created or written."""
    try:
        data.create()
    except OSError as error:
        raise StartFault(
            f"FRAMEBOX_DATA: {data.root} cannot be created or written: {error.strerror}"
        ) from error
    if not os.access(data.root, os.R_OK | os.W_OK | os.X_OK):
        raise StartFault(f"FRAMEBOX_DATA: {data.root} cannot be written by this user")


def check_all(checks: list[Callable[[], object]]) -> None:
    """Run every check, then raise one StartFault with all faults."""
    faults = []
    for check in checks:
        try:
            check()
        except StartFault as fault:
            faults.append(str(fault))
    if faults:
        raise StartFault("\n".join(faults))


def check_config(settings: Settings, _: Namespace) -> None:
    """Print the settings in force, and the host memory that they add up to."""
    for name, value in settings:
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else value
        sys.stdout.write(f"FRAMEBOX_{name.upper()}={shown}\n")
    budgets = settings.memory_budgets()
    parts = ", ".join(f"{name} {size // MIB} MiB" for name, size in budgets.items())
    sys.stdout.write(f"# memory: {sum(budgets.values()) // MIB} MiB ({parts})\n")
