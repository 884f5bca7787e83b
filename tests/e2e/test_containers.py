"""What the compose file runs works where it is run: no rights, a read-only root, no network but nginx' own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from instance import CHECKOUT, free_port
from ruamel.yaml import YAML

HERE = Path(__file__).parent
UID = 10001

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can make mount namespaces")


class Container:
    """A service of the compose file as a plain process."""

    def __init__(self, name: str, service: dict[str, Any], data: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.service = service
        self.log = data.parent / f"{name}.log"
        self._data = data
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._line(self.service["command"]),
                cwd=CHECKOUT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
        check = self.service["healthcheck"]["test"][1:]
        return not subprocess.run(
            ["nsenter", f"--target={self._process.pid}", "--mount", "--net", f"--setuid={UID}", f"--setgid={UID}", *self._by_path(check)],
            cwd=CHECKOUT,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            timeout=30,
            check=False,
        ).returncode

    def stop(self) -> int:
        """Stop it as the engine would; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.Signals[self.service.get("stop_signal", "SIGTERM")])
        return self._process.wait(60)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def _line(self, command: list[str]) -> list[str]:
        separate = ["--mount", *(["--net"] if self.service.get("network_mode") == "none" else [])]
        script = str(HERE / "container.sh")
        return ["unshare", *separate, "bash", script, str(self._data), sys.base_prefix, str(UID), *self._by_path(command)]

    def _by_path(self, command: list[str]) -> list[str]:
        assert command[0] == "python"
        return [sys.executable, *command[1:]]


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Container]]:
    """The three services, healthy."""
    data = tmp_path_factory.mktemp("containers") / "data"
    data.mkdir(mode=0o700)
    os.chown(data, UID, UID)
    services = YAML(typ="safe").load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    with ExitStack() as stack:
        running = {}
        port = free_port()
        for name, service in services.items():
            running[name] = Container(name, service, data, environment(service, port))
            stack.callback(running[name].kill)
            running[name].start()
        wait_until_healthy(running)
        yield running
''' if False else '''
