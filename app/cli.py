"""The command line, ``python -m app COMMAND``, and with it what runs as which process.

`serve` runs a whole instance; `nginx`, `web`, `engine` and `courier` are its programs, one process tree each.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGTERM

import structlog

from app.client.framebox import Framebox, Refused
from app.errors import InvalidOption, ModelFault
from app.logs import configure_logging
from app.programs.health import (
    Address,
    ask_instance,
    ask_web,
    look_up_courier,
    look_up_engine,
    wait_for_instance,
)
from app.programs.nginx import render_nginx_conf
from app.programs.preflight import StartFault
from app.programs.processes import die_with_parent
from app.programs.start import (
    become_nginx,
    become_supervisor,
    become_web,
    prepare_courier,
    prepare_engine,
    prepare_host,
)
from app.settings import MIB, Settings, SettingsFault, load_settings
from app.storage.data_folder import DataFolder

_FAULT = 2  # exit status: the settings or the machine must be changed

Command = Callable[[Settings, Namespace], int]
_READY_SECONDS = 300.0  # CUDA and a large model on a slow disk take their time

_log = structlog.get_logger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit status."""
    chosen = _parser().parse_args(arguments)
    command: Command = chosen.command
    is_supervised = command is host or getattr(chosen, "replace", False)
    if is_supervised:
        configure_logging(command.__name__, "INFO")  # until the program has read its level
    try:
        return command(load_settings(), chosen)
    except (SettingsFault, StartFault) as fault:
        for line in str(fault).splitlines():
            if is_supervised:
                _log.error("cannot start", detail=line)
            else:
                sys.stderr.write(f"framebox: {line}\n")
        return _FAULT
    except Exception:
        if not is_supervised:
            raise
        _log.critical("ended by an error", exc_info=True)
        return 1


def serve(settings: Settings, _: Namespace) -> int:
    """run the service until Ctrl-C: nginx, the HTTP workers, the engine and the courier"""
    become_supervisor(settings)


def nginx(settings: Settings, chosen: Namespace) -> int:
    """run only nginx"""
    become_nginx(settings, replace=chosen.replace)


def web(settings: Settings, chosen: Namespace) -> int:
    """run only the HTTP workers"""
    become_web(settings, replace=chosen.replace)


def engine(settings: Settings, chosen: Namespace) -> int:
    """run only the engine, which runs the jobs and starts the hosts"""
    prepare_engine(settings, replace=chosen.replace)
    from app.engine.host_pool import NoHost  # noqa: PLC0415 - reads a variable that is set just above
    from app.programs.engine import create_engine  # noqa: PLC0415

    try:
        create_engine(settings).run()
    except NoHost as fault:
        raise StartFault(str(fault)) from fault
    except (InvalidOption, ModelFault) as fault:  # of the default model
        raise StartFault(f"FRAMEBOX_MODEL: {fault.detail}") from fault
    return 0


def host(_: Settings, chosen: Namespace) -> int:
    """run a host (only the engine uses this)"""
    prepare_host()
    from app.programs.host import run_host  # noqa: PLC0415 - loads torch, which no other command needs

    return run_host(chosen.channel)


def courier(settings: Settings, chosen: Namespace) -> int:
    """run only the courier, which fetches videos from URLs and delivers callbacks"""
    prepare_courier(settings, replace=chosen.replace)
    from app.programs.courier import create_courier  # noqa: PLC0415 - reads a variable that is set just above

    create_courier(settings).run()
    return 0


def check_config(settings: Settings, _: Namespace) -> int:
    """check the settings, and print them and their total memory"""
    for name, value in settings:
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else value
        sys.stdout.write(f"FRAMEBOX_{name.upper()}={shown}\n")
    budgets = settings.memory_budgets()
    parts = ", ".join(f"{name} {size // MIB} MiB" for name, size in budgets.items())
    sys.stdout.write(f"# memory: {sum(budgets.values()) // MIB} MiB ({parts})\n")
    return 0


def render_nginx(settings: Settings, _: Namespace) -> int:
    """print the configuration of nginx"""
    sys.stdout.write(render_nginx_conf(settings))
    return 0


def health(settings: Settings, _: Namespace) -> int:
    """ask the running instance whether it is ready; exit with 1 if not"""
    return _print_verdict(ask_instance(_address(settings)))


def health_web(settings: Settings, _: Namespace) -> int:
    """ask only the HTTP workers, on their socket"""
    return _print_verdict(ask_web(DataFolder(settings.data).web_socket))


def health_engine(settings: Settings, _: Namespace) -> int:
    """look up the last report of the engine"""
    return _print_verdict(look_up_engine(DataFolder(settings.data)))


def health_courier(settings: Settings, _: Namespace) -> int:
    """look up the last heartbeat of the courier"""
    return _print_verdict(look_up_courier(DataFolder(settings.data)))


def _print_verdict(verdict: tuple[bool, str]) -> int:
    healthy, answer = verdict
    sys.stdout.write(f"{answer}\n")
    return 0 if healthy else 1


def detect(settings: Settings, chosen: Namespace) -> int:
    """send a video to a running instance and print the answer"""
    url = chosen.url or _address(settings).url
    options = dict(option.split("=", 1) for option in chosen.option)
    try:
        with Framebox(url).detect(chosen.video, **options) as answer:
            for chunk in answer.chunks():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if not answer.complete:
                sys.stderr.write(f"framebox: frames are missing: see {url}/v1/jobs/{answer.job_id}\n")
    except (Refused, OSError) as fault:
        sys.stderr.write(f"framebox: {fault}\n")
        return 1
    return 0


def announce(settings: Settings, _: Namespace) -> int:
    """print what the start waits for, and then the address of the instance"""
    die_with_parent(SIGTERM)
    configure_logging("serve", settings.log_level)
    address = _address(settings)
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


def _address(settings: Settings) -> Address:
    return Address(settings.host, settings.port, settings.tls_certificate)


_COMMANDS: tuple[Command, ...] = (
    serve,
    nginx,
    web,
    engine,
    host,
    courier,
    check_config,
    render_nginx,
    health,
    health_web,
    health_engine,
    health_courier,
    announce,
    detect,
)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m app",
        description="Framebox: a video goes in, the boxes of every frame come out.",
        epilog="Settings are environment variables, FRAMEBOX_*: see docs/settings.md.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        name = command.__name__.replace("_", "-")
        subparser = commands.add_parser(name, help=command.__doc__)
        subparser.set_defaults(command=command)
        if command is host:
            subparser.add_argument("--channel", type=int, required=True, help="a socket's descriptor")
        if command is detect:
            subparser.add_argument("video", type=Path, metavar="VIDEO")
            subparser.add_argument("--url", help="of the service (default: this machine's instance)")
            subparser.add_argument(
                "--option",
                action="append",
                default=[],
                type=_option,
                metavar="NAME=VALUE",
                help="an option of the detection, such as stride=10 or times=true; may be repeated",
            )
        if command in (nginx, web, engine, courier):
            subparser.add_argument(
                "--replace",
                action="store_true",
                help="end processes that an earlier start left behind",
            )
    return parser


def _option(text: str) -> str:
    if "=" not in text:
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text
