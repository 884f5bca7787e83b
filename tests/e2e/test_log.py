"""What an instance writes while it starts, runs and stops: JSON lines, and words for who started it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from instance import CHECKOUT
from killing import kill_all
from ports import free_port

from app.programs.address import Address

SECONDS = 90.0


class Started:
    """``python -m app serve`` with its two outputs in files of their own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {
            "FRAMEBOX_DATA": str(folder / "data"),
            "FRAMEBOX_HOST": "127.0.0.1",
            "FRAMEBOX_PORT": str(self.port),
        }
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                cwd=CHECKOUT,
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    def words(self) -> str:
        return self._err.read_text()

    def wait_for(self, event: str, **fields: Any) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while True:
            for line in self.lines():
                if line["event"] == event and fields.items() <= line.items():
                    return line
            assert time.monotonic() < deadline, f"no line {event!r}\n{self._out.read_text()}\n{self.words()}"
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def program(self, *words: str) -> psutil.Process:
        (found,) = [process for process in self.family() if self._is_program(process, words)]
        return found

    def _is_program(self, process: psutil.Process, words: tuple[str, ...]) -> bool:
        try:
            is_child, command = process.ppid() == self.process.pid, process.cmdline()
        except psutil.Error:  # it has ended meanwhile, as the one that announces the address does
            return False
        return is_child and all(any(part.endswith(word) for part in command) for word in words)


@pytest.fixture
def started(tmp_path: Path):
    instance = Started(tmp_path)
    yield instance
    if instance.process.poll() is None:
        kill_all(instance.family())
    instance.process.wait(10)


def test_every_line_is_json_and_a_start_says_what_it_is_at(started: Started) -> None:
    assert started.wait_for("ready")["url"] == Address("127.0.0.1", started.port).url
    words = [line for line in started.words().splitlines() if line]
    assert words[0].startswith(f"framebox: starting at {started.url}, with the data in ")
    assert "framebox: waiting: the default model is loading" in words
    assert f"Framebox answers at {started.url}" in words
    for event in ("engine started", "host is starting", "host ready", "default model is loading"):
        started.wait_for(event, program="engine")
    for request, status in (
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/\xff HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", 413),
    ):
        with socket.create_connection(("127.0.0.1", started.port), timeout=10) as connection:
            connection.sendall(request)
            assert b" %d " % status in connection.recv(1000)
        started.wait_for("request", program="nginx", status=status, client="127.0.0.1")
    requests.get(f"{started.url}/v1/jobs?secret=1", timeout=30)
    started.wait_for("request", program="web", path="/v1/jobs", client="127.0.0.1")
    web, supervisor = started.program("gunicorn"), psutil.Process(started.process.pid)
    supervisor.suspend()  # it starts no other meanwhile
    kill_all([*web.children(), web])
    assert requests.post(f"{started.url}/v1/detections?secret=1", data=b"x", timeout=30).status_code == 502
    supervisor.resume()
    told = {"client": "127.0.0.1", "method": "POST", "path": "/v1/detections"}
    started.wait_for("nginx message", program="nginx", level="error", **told)
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(60) == 0
    lines = started.lines()
    assert all({"event", "level", "timestamp", "program"} <= line.keys() for line in lines)
    assert {"serve", "engine", "web", "courier", "nginx", "supervisor"} <= {line["program"] for line in lines}
    assert "secret" not in json.dumps(lines)


def test_nginx_goes_on_where_nobody_reads_its_errors(started: Started) -> None:
    started.wait_for("ready")
    nginx = started.program("nginx")
    (reader,) = [child for child in nginx.children() if "app.programs.log_lines" in child.cmdline()]
    reader.suspend()
    _be_refused(started, times=600)  # far more than a pipe holds
    assert requests.get(f"{started.url}/livez", timeout=10).status_code == 200
    reader.kill()
    _be_refused(started, times=10)
    assert requests.get(f"{started.url}/livez", timeout=10).status_code == 200
    assert nginx.is_running()


def _be_refused(started: Started, *, times: int) -> None:
    """Send bodies that nginx finds too large: a line in its error log each."""
    with requests.Session() as session:
        for _ in range(times):
            answer = session.post(f"{started.url}/v1/jobs", data=b"", headers={"Content-Length": "99999999"})
            assert answer.status_code == 413
