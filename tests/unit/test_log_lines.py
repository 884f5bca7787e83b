"""Plain lines of nginx and of supervisord become lines of JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest
from supervisor import loggers

from app.programs.log_lines import nginx_line
from app.programs.supervisor import write_own_lines_as_json
from app.settings import CHECKOUT

REFUSED = (
    "2026/11/27 22:43:43 [error] 123#124: *5 connect() failed (111: Connection refused) while connecting to "
    'upstream, client: 192.0.2.7, server: framebox, request: "POST /v1/detections?callback=https://u:p@h/ '
    'HTTP/1.1", subrequest: "/_admit", upstream: "http://unix:/data/run/web.sock:/_internal/admit", host: "h"'
)


def read(line: str) -> dict[str, Any]:
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    assert found.pop("timestamp").endswith("Z")
    return found


def test_an_error_tells_who_asked_for_what_and_no_secret() -> None:
    assert read(nginx_line(REFUSED)) == {
        "event": "nginx message",
        "detail": "connect() failed (111: Connection refused) while connecting to upstream",
        "client": "192.0.2.7",
        "method": "POST",
        "path": "/v1/detections",
        "level": "error",
        "program": "nginx",
    }


@pytest.mark.parametrize(
    ("text", "level", "detail"),
    [
        (
            "2026/11/27 22:43:43 [alert] 7#7: worker process 8 exited on signal 9",
            "critical",
            "worker process 8",
        ),
        ('nginx: [emerg] unknown directive "x" in /a:1', "critical", 'unknown directive "x" in /a:1'),
        (
            "2026/11/27 22:43:43 [warn] 7#7: *1 a client request body is buffered",
            "warning",
            "a client request",
        ),
        ("malloc(): corrupted", "error", "malloc(): corrupted"),
        ("", "error", ""),
    ],
)
def test_every_other_line_is_kept_with_its_level(text: str, level: str, detail: str) -> None:
    line = read(nginx_line(text))
    assert line["level"] == level
    assert line["detail"].startswith(detail)
    assert line.keys() == {"event", "detail", "level", "program"}


def test_what_a_client_writes_forges_neither_its_address_nor_a_line() -> None:
    request = "GET /, client: 203.0.113.9, \x1b[2J\u2028 HTTP/1.1"
    line = read(
        nginx_line(f'2026/11/27 22:43:43 [info] 7#7: *1 x, client: ::1, server: f, request: "{request}"')
    )
    assert line["client"] == "::1"


def test_a_reader_that_is_gone_stops_nothing() -> None:
    """nginx' pipe is read to its end even where nobody takes the lines any more."""
    command = [sys.executable, "-m", "app.programs.log_lines"]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as filter_:
        assert filter_.stdin is not None
        assert filter_.stdout is not None
        assert filter_.stderr is not None
        filter_.stdin.write(REFUSED.encode() + b"\n")
        filter_.stdin.flush()
        assert read(filter_.stdout.readline().decode().rstrip("\n"))["client"] == "192.0.2.7"
        filter_.stdout.close()
        for _ in range(5000):  # a pipe holds 64 KiB
            filter_.stdin.write(REFUSED.encode() + b"\n")
        filter_.stdin.close()
        assert filter_.wait(timeout=30) == 0
        assert b"Traceback" not in filter_.stderr.read()


def test_supervisord_writes_its_own_lines_as_json_and_passes_others_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(loggers, "handle_file", loggers.handle_file)  # it is put back afterwards
    write_own_lines_as_json()
    own, passed_on = loggers.getLogger(loggers.LevelsByName.WARN), loggers.getLogger()
    loggers.handle_file(own, str(tmp_path / "own"), "%(asctime)s %(levelname)s %(message)s\n")
    loggers.handle_file(passed_on, str(tmp_path / "passed on"), "%(message)s")
    own.warn("killing 'engine' (7) with SIGKILL\nat last")
    own.info("nobody wants to know")
    passed_on.info(b'{"event":"of a program"}\n')
    for logger in (own, passed_on):
        logger.close()
    (line,) = io.StringIO((tmp_path / "own").read_text())
    assert read(line.rstrip("\n")) == {
        "event": "supervisor message",
        "detail": "killing 'engine' (7) with SIGKILL\nat last",
        "level": "warning",
        "program": "supervisor",
    }
    assert (tmp_path / "passed on").read_text() == '{"event":"of a program"}\n'
