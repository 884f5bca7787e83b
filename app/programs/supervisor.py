"""supervisord with log lines in JSON: ``python -m app.programs.supervisor``."""

from __future__ import annotations

from typing import Any

from supervisor import loggers, supervisord

from app.programs.log_lines import log_line

_LEVELS = {"CRIT": "critical", "ERRO": "error", "WARN": "warning", "INFO": "info"}


class JsonFormat(str):
    """A format for supervisor's loggers, which write `format % record`."""

    __slots__ = ()

    def __mod__(self, record: Any) -> str:
        level = _LEVELS.get(record["levelname"], "debug")
        return log_line("supervisor", level, "supervisor message", detail=record["message"]) + "\n"


def write_own_lines_as_json() -> None:
    """Have supervisord write its own log as JSON. It passes on the output of its programs unchanged."""
    attach = loggers.handle_file

    def attach_with_format(logger: Any, filename: str, fmt: str, **options: Any) -> None:
        attach(logger, filename, JsonFormat(fmt) if "levelname" in fmt else fmt, **options)

    loggers.handle_file = attach_with_format


if __name__ == "__main__":
    write_own_lines_as_json()
    supervisord.main()
