"""The programs of an instance, and how this process becomes one of them.

    serve ─▶ supervisord ─┬─▶ engine     python -m app engine ─▶ hosts, one a device ─▶ decoders
                          ├─▶ courier    python -m app courier
                          ├─▶ web        python -m app web    ─▶ gunicorn
                          ├─▶ nginx      python -m app nginx  ─▶ nginx; log_lines turns its errors into JSON
                          └─▶ announce   prints what the start waits for, and the address of the service

In containers the same four commands run as four services, without `serve`.
A data folder has one of each: a program, or a process that it left behind, holds its lock there. The
supervisor never runs two of a kind, so its programs *replace* such orphans, that is, end them.
"""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import NoReturn

from app.memory import keep_freed_memory, use_one_arena
from app.programs.address import Address
from app.programs.preflight import (
    StartFault,
    check_all,
    check_ca_file,
    check_folders,
    check_port,
    check_socket_path,
    check_tls,
    find_nginx,
    make_data_folder,
)
from app.programs.processes import LockHeld, die_with_parent, take_lock, take_over_lock
from app.restarts import pause_before_start
from app.settings import CHECKOUT, Settings
from app.storage.data_folder import DataFolder

# The programs, and how many seconds one whose supervisor was killed may take to stop: its own grace period
# for requests and segments, and a little. nginx has none: its workers stop at once, or have no master.
_STOP_SECONDS = {"nginx": 5.0, "web": 40.0, "engine": 40.0, "courier": 30.0}

_EXECUTED = ("nginx", "web")  # become another program, which must inherit the lock
_COUNTING = ("web", "engine", "courier")  # have metrics

_SERVE_LOCK_DESCRIPTOR = 3  # supervisord closes what it inherits from 5 on, and its programs from 3 on
_STOP_MARGIN_SECONDS = 10  # after its own grace period, before a program is killed
# The memory of a read of 1 MiB is kept for the next read instead of being returned: twice the speed.
_WEB_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "16777216",
}


def serve(settings: Settings, _: Namespace) -> NoReturn:
    """Check that the instance can start, clean up after an earlier one, and become supervisord.

    Raises StartFault with all reasons why it cannot start.
    """
    data = DataFolder(settings.data)
    check_all(
        [
            find_nginx,
            lambda: check_socket_path(data),
            lambda: check_folders(settings),
            lambda: check_tls(settings),
            lambda: check_ca_file(settings),
        ]
    )
    make_data_folder(data)
    try:
        descriptor = take_lock(data.lock("serve"))
    except LockHeld as error:
        raise StartFault(
            f"another instance runs on the data folder {data.root}; "
            "give this one its own: FRAMEBOX_DATA=/another/folder"
        ) from error
    os.dup2(descriptor, _SERVE_LOCK_DESCRIPTOR)
    os.set_inheritable(_SERVE_LOCK_DESCRIPTOR, True)
    for program, grace_seconds in _STOP_SECONDS.items():
        try:
            descriptor = take_lock(data.lock(program))
        except LockHeld:
            sys.stderr.write(f"framebox: waiting for the {program} of an earlier start to end\n")
            descriptor = _take_lock(data, program, replace=True, grace_seconds=grace_seconds)
        os.close(descriptor)
    check_port(settings.host, settings.port)
    data.empty_run()
    data.create()
    configuration = CHECKOUT / "deploy" / "supervisord.conf"
    arguments = ["-c", str(configuration), "-j", str(data.run / "supervisord.pid"), "-u", str(os.getuid())]
    sys.stderr.write(f"framebox: starting at {Address.of(settings).url}, with the data in {data.root}\n")
    for descriptor in (1, 2):
        _make_reopenable(descriptor)
    environment = {  # that supervisord.conf uses; python3 must be this interpreter
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
        "ENGINE_STOP_SECONDS": str(math.ceil(settings.stop_seconds) + _STOP_MARGIN_SECONDS),
    }
    execute(sys.executable, "-m", "app.programs.supervisor", *arguments, environment=environment)


def start_program(settings: Settings, chosen: Namespace) -> None:
    """Set this process up for a program: its parent, its lock, and the variables that libraries read."""
    name, replace = chosen.command, chosen.replace
    die_with_parent(signal.SIGTERM)
    if name == "engine":
        use_one_arena()
    data = DataFolder(settings.data)
    data.create()
    if replace:  # under the supervisor, which restarts a program at once, however often it ends
        pause_before_start(data.starts(name))
    if name == "nginx":  # before an earlier one, which may still serve, is ended
        check_tls(settings)
    elif name == "courier":
        check_ca_file(settings)
    os.set_inheritable(_take_lock(data, name, replace=replace, grace_seconds=0), name in _EXECUTED)
    if name in _COUNTING:
        folder = data.metrics / name
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # read by prometheus-client


def start_host(_: Settings, chosen: Namespace) -> None:
    """Set this process up for a host or a trial, before it loads a library."""
    from app.logs import configure_logging  # noqa: PLC0415 - takes time to import, and only hosts need it here

    die_with_parent(signal.SIGKILL)
    use_one_arena()
    keep_freed_memory()
    # Threads of a matrix product that spin while they wait take cores from decoders. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Without this, onnxruntime reports every start, session and fault to its makers over the network.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    configure_logging(chosen.command, "INFO")  # for what libraries log while they are imported


def run_gunicorn(_: Settings, __: Namespace) -> NoReturn:
    """Become gunicorn's master."""
    configuration = str(CHECKOUT / "gunicorn.conf.py")
    execute(sys.executable, "-m", "gunicorn", "-c", configuration, environment=_WEB_MALLOC)


def execute(program: str, *arguments: str, environment: dict[str, str] | None = None) -> NoReturn:
    """Become another program, with `environment` besides that of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(  # noqa: S606 - by its path, without a shell
        program, [program, *arguments], {**os.environ, **(environment or {})}
    )


def _take_lock(data: DataFolder, program: str, *, replace: bool, grace_seconds: float) -> int:
    try:
        if replace:
            return take_over_lock(data.lock(program), grace_seconds=grace_seconds)
        return take_lock(data.lock(program))
    except LockHeld as error:
        raise StartFault(f"another {program} runs on the data folder {data.root}") from error


def _make_reopenable(descriptor: int) -> None:
    """Put a pipe before standard output or error if that is a socket, as under systemd.

    supervisord opens /dev/fd/1 for each program, and a socket cannot be opened. The process at the other end
    of the pipe survives a SIGTERM to the whole group, and ends when the last writer does.
    """
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return
    command = ["sh", "-c", "trap '' TERM INT; exec cat"]
    copier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=descriptor)
    if copier.stdin is not None:
        os.dup2(copier.stdin.fileno(), descriptor)
