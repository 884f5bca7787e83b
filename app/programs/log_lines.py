"""Log lines of programs that cannot write JSON themselves: the errors of nginx, and supervisord's own.

``python -m app.programs.log_lines`` reads nginx's plain lines from standard input and writes JSON lines. It
ends with its input, that is, with the last nginx process. It imports only the standard library, to stay
small.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime

_LEVELS = {
    "debug": "debug", "info": "info", "notice": "info", "warn": "warning",
    "error": "error", "crit": "critical", "alert": "critical", "emerg": "critical",
}  # fmt: skip
_LINE = re.compile(
    r"(?:\d{4}/\d\d/\d\d [\d:]{8} |nginx: )?\[(?P<level>[a-z]+)\] (?:\d+#\d+: )?(?:\*\d+ )?(?P<rest>.*)",
    re.DOTALL,
)
_CONTEXT = re.compile(r", (client|server|request|subrequest|upstream|host|referrer): ")
_REQUEST = re.compile(r'"(?P<method>\S+) (?P<path>[^\s?"]*)')


def log_line(program: str, level: str, event: str, **fields: str) -> str:
    """Return a line in the form that `app.logs` configures."""
    timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"event": event, **fields, "level": level, "timestamp": timestamp, "program": program}
    return json.dumps(line, separators=(",", ":"))


def nginx_line(text: str) -> str:
    """Return a line of the error log of nginx as JSON.

    The path is the one that the client requested, without the query, which may hold secrets. Internal
    locations and upstreams are left out: they mean nothing to a reader.
    """
    found = _LINE.fullmatch(text)
    if found is None:
        return log_line("nginx", "error", "nginx message", detail=text)
    detail, *context = _CONTEXT.split(found["rest"])
    # The first value of a name counts: clients can forge later ones.
    named = dict(reversed([*zip(context[::2], context[1::2], strict=True)]))
    fields = {"detail": detail}
    if "client" in named:
        fields["client"] = named["client"]
    if request := _REQUEST.match(named.get("request", "")):
        fields |= request.groupdict()
    return log_line("nginx", _LEVELS.get(found["level"], "error"), "nginx message", **fields)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):  # nginx logs after these signals
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        text = line.decode(errors="replace").rstrip("\n")
        with suppress(OSError):  # the log's reader is gone; the pipe of nginx must still be emptied
            os.write(1, f"{nginx_line(text)}\n".encode())


if __name__ == "__main__":
    main()
