"""The command line, ``python -m app COMMAND``, and with it what runs as which process.

`serve` runs a whole instance; `nginx`, `web`, `engine` and `courier` are its programs, one process tree each.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from app.programs.log_lines import log_line
from app.programs.preflight import StartFault
from app.settings import SettingsFault, load_settings

_FAULT = 2  # exit status: the settings or the machine must be changed


class Command(NamedTuple):
    """A command: one function, or two that are called in order, with the settings and the arguments.

    The module of each is imported only when it is called. So a process holds only what its command needs,
    and the first function can set variables that libraries read when the second one's module imports them.
    The last one returns the exit status.
    """

    help: str
    first: str
    then: str | None = None


_START = "app.programs.start:start_program"

COMMANDS = {
    "serve": Command(
        "run the service until Ctrl-C: nginx, the HTTP workers, the engine and the courier",
        "app.programs.start:serve",
    ),
    "nginx": Command("run only nginx", _START, "app.programs.nginx:run"),
    "web": Command("run only the HTTP workers", _START, "app.programs.start:run_gunicorn"),
    "engine": Command(
        "run only the engine, which runs the jobs and starts the hosts", _START, "app.programs.engine:run"
    ),
    "host": Command(
        "run a host (only the engine uses this)", "app.programs.start:start_host", "app.programs.host:run"
    ),
    "trial": Command(
        "try a model (only the engine uses this)", "app.programs.start:start_host", "app.programs.host:run"
    ),
    "courier": Command(
        "run only the courier, which fetches videos from URLs and delivers callbacks",
        _START,
        "app.programs.courier:run",
    ),
    "check-config": Command(
        "check the settings, and print them and their total memory", "app.programs.preflight:check_config"
    ),
    "render-nginx": Command("print the configuration of nginx", "app.programs.nginx:print_configuration"),
    "health": Command(
        "ask the running instance whether it is ready; exit with 1 if not", "app.programs.health:health"
    ),
    "health-web": Command("ask only the HTTP workers, on their socket", "app.programs.health:health"),
    "health-engine": Command("look up the last report of the engine", "app.programs.health:health"),
    "health-courier": Command("look up the last heartbeat of the courier", "app.programs.health:health"),
    "announce": Command(
        "print what the start waits for, and then the address of the instance", "app.programs.health:announce"
    ),
    "detect": Command(
        "send a video to a running instance and print the answer", "app.programs.detect:detect"
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit status."""
    chosen = _parser().parse_args(arguments)
    is_supervised = chosen.command in ("host", "trial") or getattr(chosen, "replace", False)
    _, first, then = COMMANDS[chosen.command]
    try:
        settings = load_settings()
        status: int | None = resolve_name(first)(settings, chosen)
        if then is not None:
            status = resolve_name(then)(settings, chosen)
    except (SettingsFault, StartFault) as fault:
        for line in str(fault).splitlines():
            if is_supervised:
                _log(chosen.command, "error", "cannot start", detail=line)
            else:
                sys.stderr.write(f"framebox: {line}\n")
        return _FAULT
    except Exception:
        if not is_supervised:
            raise
        _log(chosen.command, "critical", "ended by an error", exception=traceback.format_exc().rstrip())
        return 1
    return status or 0


def _log(program: str, level: str, event: str, **fields: str) -> None:
    sys.stdout.write(f"{log_line(program, level, event, **fields)}\n")
    sys.stdout.flush()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m app",
        description="Framebox: a video goes in, the boxes of every frame come out.",
        epilog="Settings are environment variables, FRAMEBOX_*: see docs/settings.md.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    parsers = {name: commands.add_parser(name, help=command.help) for name, command in COMMANDS.items()}
    for command in ("host", "trial"):
        parsers[command].add_argument("--channel", type=int, required=True, help="a socket's descriptor")
    parsers["detect"].add_argument("video", type=Path, metavar="VIDEO")
    parsers["detect"].add_argument("--url", help="of the service (default: this machine's instance)")
    parsers["detect"].add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of the detection, such as stride=10 or times=true; may be repeated",
    )
    for name in ("nginx", "web", "engine", "courier"):
        parsers[name].add_argument(
            "--replace", action="store_true", help="end processes that an earlier start left behind"
        )
    return parser


def _option(text: str) -> str:
    if "=" not in text:
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text
