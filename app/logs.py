"""Logging: one JSON object per line on stdout, in the same form from every program of the instance.

An event is a constant text; fields hold what varies. `request_id` and `job_id` are bound once, with
`structlog.contextvars.bound_contextvars`, and are then in every line of that context.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def configure_logging(program: str, level: str) -> None:
    """Send the log of this process and its libraries to stdout as JSON lines.

    `program` is in each line; `level` is one of DEBUG, INFO, WARNING, ERROR. Call it once, early.
    """
    structlog.configure(
        processors=[
            *_shared_processors(program),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json_bytes),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stdout.buffer),
        cache_logger_on_first_use=False,
    )
    logging.config.dictConfig(standard_logging(program, level))


def standard_logging(program: str, level: str) -> dict[str, Any]:
    """Return the `logging.config` dictionary with which libraries write the same lines as structlog.

    gunicorn's loggers use the root's handler; its access log is off, since the application writes its own.
    """
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": _shared_processors(program),
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda value, **_: _json_bytes(value).decode()),
        ],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter},
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
        },
        "root": {"level": level, "handlers": ["stdout"]},
        "loggers": {
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }


def _shared_processors(program: str) -> list[Processor]:
    def add_program(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["program"] = program
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_program,
    ]


def _json_bytes(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS)
