"""What the compose file runs works as it is run: no rights, a read-only root, no network but nginx' own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from instance import CHECKOUT
from killing import kill_all
from ports import free_port
from ruamel.yaml import YAML

CONTAINER = Path(__file__).with_name("container.sh")
UID = 10001
START_SECONDS = 120.0
STOP_SECONDS = 45.0


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    """Skips where this user may make none, unless FRAMEBOX_REQUIRE_NAMESPACES says that it must."""
    probe = subprocess.run(
        ["unshare", "--mount", "--net", "true"], capture_output=True, text=True, timeout=10, check=False
    )
    if probe.returncode != 0:
        reason = f"no namespaces here: {probe.stderr.strip()}"
        if os.environ.get("FRAMEBOX_REQUIRE_NAMESPACES", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)


class Container:
    """A service of the compose file as a plain process, with what its container would deny it denied."""

    def __init__(self, service: dict[str, Any], data: Path, port: int) -> None:
        self.service = service
        self.log = data.parent / f"{service['command'][-1]}.log"
        self._data = data
        self._environment = {
            "PATH": f"/tmp/framebox/.venv/bin:{os.environ['PATH']}",
            "HOME": "/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
            **{name: _filled_in(value, port) for name, value in service["environment"].items()},
            "FRAMEBOX_DATA": "/tmp/data",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        separate = ["--mount", *(["--net"] if self.service.get("network_mode") == "none" else [])]
        places = [str(CHECKOUT), str(self._data), sys.base_prefix, str(UID)]
        with self.log.open("ab") as log:
            os.fchown(log.fileno(), UID, UID)  # as runc does with a container's stdout
            self._process = subprocess.Popen(
                [
                    "unshare",
                    *separate,
                    "bash",
                    str(CONTAINER),
                    *places,
                    *(command or self.service["command"]),
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self._process

    def is_healthy(self) -> bool:
        """Run the service's health check inside."""
        assert self._process is not None
        assert self._process.poll() is None, "\n".join(["it ended:", *self.tail(40)])
        inside = [f"--target={self._process.pid}", "--mount", "--net", "--root", "--wdns=/tmp/framebox"]
        check = self.service["healthcheck"]["test"][1:]
        line = ["nsenter", *inside, f"--setuid={UID}", f"--setgid={UID}", *check]
        outcome = subprocess.run(line, env=self._environment, capture_output=True, timeout=30, check=False)
        return outcome.returncode == 0

    def stop(self) -> int:
        """Stop it as the engine would; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.Signals[self.service.get("stop_signal", "SIGTERM")])
        return self._process.wait(STOP_SECONDS)

    def tail(self, lines: int) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()[-lines:]

    def kill(self) -> None:
        """Kill all that is in it, as the end of a container's first process does."""
        if self._process is not None and self._process.poll() is None:
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            kill_all(family)
            self._process.wait(10)
            psutil.wait_procs(family, timeout=10)


def _filled_in(value: str, port: int) -> str:
    return re.sub(r"\$\{FRAMEBOX_PORT:-8080\}", str(port), value)


def wait_until_healthy(containers: dict[str, Container]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for name, container in containers.items():
        while not container.is_healthy():
            assert time.monotonic() < deadline, f"{name} is not healthy:\n{last_words(containers)}"
            time.sleep(0.1)


def last_words(containers: dict[str, Container]) -> str:
    return "\n".join(line for container in containers.values() for line in container.tail(20))


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[dict[str, Container]]:
    """The services, healthy, on one data folder."""
    data = tmp_path_factory.mktemp("containers") / "data"
    data.mkdir(mode=0o700)
    os.chown(data, UID, UID)
    services = YAML(typ="safe").load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    made = {name: Container(service, data, port) for name, service in services.items()}
    with ExitStack() as stack:
        for container in made.values():
            stack.callback(container.kill)
            container.start()
        wait_until_healthy(made)
        yield made


def post(port: int, video: Path, **options: str) -> requests.Response:
    with video.open("rb") as body:
        return requests.post(
            f"http://127.0.0.1:{port}/v1/detections",
            params=options,
            data=body,
            headers={"Content-Type": "video/mp4"},
            timeout=120,
        )


def test_a_container_can_write_nothing_but_its_data_and_tmp(containers: dict[str, Container]) -> None:
    probe = Container(containers["engine"].service, containers["engine"]._data, 0)
    script = (
        "import os, pathlib, sys\n"
        "denied = []\n"
        "for place in ('/etc', '/tmp/framebox', '/var', '/usr'):\n"
        "    try: pathlib.Path(place, 'x').write_text('x')\n"
        "    except OSError: denied.append(place)\n"
        "pathlib.Path('/tmp/x').write_text('x')\n"
        "rights = pathlib.Path('/proc/self/status').read_text()\n"
        "assert 'CapBnd:\\t0000000000000000' in rights and 'NoNewPrivs:\\t1' in rights, rights\n"
        "assert os.getuid() == os.getgid() == 10001\n"
        "assert len(denied) == 4, denied\n"
    )
    probe.log = probe.log.with_name("probe.log")
    assert probe.start(["python", "-c", script]).wait(30) == 0, probe.log.read_text()


def test_a_video_is_answered(containers: dict[str, Container], port: int, clip: Path) -> None:
    answer = post(port, clip, model="none")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()) == 500
    assert answer.headers["Framebox-Complete"] == "true"


def test_the_default_model_runs(containers: dict[str, Container], port: int, clip: Path) -> None:
    answer = post(port, clip, end="0.5", max_side="160")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()) == 13


def test_a_container_that_is_killed_can_be_started_again(
    containers: dict[str, Container], port: int, clip: Path
) -> None:
    for name in ("engine", "courier", "web", "nginx"):
        containers[name].kill()
        containers[name].start()
        wait_until_healthy(containers)
    assert post(port, clip, model="none").status_code == 200


def test_a_second_engine_on_the_data_is_refused(containers: dict[str, Container]) -> None:
    second = Container(containers["engine"].service, containers["engine"]._data, 0)
    second._environment["FRAMEBOX_PORT"] = "8080"
    second.log = second.log.with_name("second.log")
    assert second.start().wait(30) == 2
    assert "another engine runs on the data folder" in second.log.read_text()
    assert containers["engine"].is_healthy()


def test_a_stop_ends_each_in_order(containers: dict[str, Container]) -> None:
    assert {name: container.stop() for name, container in containers.items()} == dict.fromkeys(containers, 0)
