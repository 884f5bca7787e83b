"""nginx, gunicorn and the double engine as real processes on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import requests
from ports import free_port
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from waiting import SECONDS, wait_until

from app.programs.nginx import render_nginx_conf
from app.settings import Settings
from app.storage.data_folder import DataFolder
from app.web.openapi import openapi_document, openapi_path
from app.web.routes import ROUTES

CHECKOUT = Path(__file__).resolve().parents[2]
DOUBLE_ENGINE = Path(__file__).with_name("double_engine.py")
START_SECONDS = 30.0
MALLOC = {  # as gunicorn.conf.py wants it
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "16777216",
}


@dataclass
class WebInstance:
    """A running web side. `settings` are the overrides, as environment variables without FRAMEBOX_."""

    data: Path
    settings: dict[str, str]
    logs: Path
    port: int = field(default_factory=free_port)
    change_nginx_conf: Callable[[str], str] = str  # for times that no test can wait for
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"

    @property
    def certificate(self) -> str | None:
        """What the instance shows, where it speaks HTTPS; requests' `verify`."""
        return self.settings.get("TLS_CERTIFICATE")

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.data)

    def environment(self) -> dict[str, str]:
        own = {f"FRAMEBOX_{name}": value for name, value in self.settings.items()}
        base = {
            "FRAMEBOX_DATA": str(self.data),
            "FRAMEBOX_PORT": str(self.port),
            "FRAMEBOX_HOST": "127.0.0.1",
            "FRAMEBOX_ATTACH": "false",  # tests post the same orders again and again
        }
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("FRAMEBOX_")},
            "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}",
            "PROMETHEUS_MULTIPROC_DIR": str(self.folder.metrics / "web"),
            **MALLOC,
            **base,
            **own,
        }

    def log(self, program: str) -> str:
        return (self.logs / f"{program}.log").read_text(errors="replace")

    def start(self, program: str, command: list[str], **options: Any) -> None:
        with (self.logs / f"{program}.log").open("ab") as log:
            self.programs[program] = _popen(command, log, self.environment(), **options)

    def stop(self, program: str, number: int = signal.SIGTERM) -> None:
        process = self.programs.pop(program)
        process.send_signal(number)
        process.wait(timeout=30)

    def start_engine(self) -> None:
        self.start("engine", [sys.executable, str(DOUBLE_ENGINE), str(self.data)])

    def start_gunicorn(self) -> None:
        self.start("gunicorn", [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"])

    def start_nginx(self) -> None:
        """nginx inherits the listening socket (its variable NGINX): it is there before nginx runs."""
        self.folder.nginx_socket.unlink(missing_ok=True)  # of one that was killed
        listener = socket.create_server(("127.0.0.1", self.port))
        with listener:
            listener.setblocking(False)  # nginx takes it as it is, and must not wait in accept
            settings = Settings(data=self.data, port=self.port, host="127.0.0.1", **_lower(self.settings))
            configuration = self.folder.run / "nginx.conf"
            configuration.write_text(self.change_nginx_conf(render_nginx_conf(settings)))
            os.set_inheritable(listener.fileno(), True)
            command = ["nginx", "-e", "stderr", "-p", str(self.folder.run), "-c", str(configuration)]
            environment = self.environment() | {"NGINX": f"{listener.fileno()};"}
            with (self.logs / "nginx.log").open("ab") as log:
                self.programs["nginx"] = _popen(command, log, environment, pass_fds=(listener.fileno(),))

    def report(self, job_id: str) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/v1/jobs/{job_id}", timeout=SECONDS, verify=self.certificate)
        report: dict[str, Any] = answer.json()
        return report

    def end_of(self, job_id: str) -> dict[str, Any]:
        """The job's report once it has ended."""
        wait_until(lambda: self.report(job_id)["state"] in ("succeeded", "failed", "cancelled"))
        return self.report(job_id)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.url}/readyz", timeout=5, verify=self.certificate).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.05)
        logs = "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in self.programs)
        raise AssertionError(f"not ready after {START_SECONDS} s\n{logs}")


@contextmanager
def running_instance(
    folder: Path, change_nginx_conf: Callable[[str], str] = str, /, **settings: str
) -> Iterator[WebInstance]:
    """Yield a ready instance with its data and logs in `folder`; all of it is gone afterwards."""
    instance = WebInstance(folder / "data", dict(settings), folder, change_nginx_conf=change_nginx_conf)
    instance.folder.create()
    with ExitStack() as stack:
        stack.callback(_stop_all, instance)
        instance.start_nginx()
        instance.start_gunicorn()
        instance.start_engine()
        instance.wait_until_ready()
        yield instance
        undocumented = _undocumented_answers(instance)
        assert not undocumented, undocumented


def _undocumented_answers(instance: WebInstance) -> set[tuple[str, str, str]]:
    """Return each (method, route, status) that the HTTP workers answered and the OpenAPI document has not."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(instance.folder.metrics / "web"))
    answered = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"])
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "framebox_http_requests_total"
    }
    public = {route.rule: openapi_path(route.rule) for route in ROUTES if route.is_public}
    documented = {
        (method.upper(), path, status)
        for path, operations in openapi_document("")["paths"].items()
        for method, operation in operations.items()
        for status in operation["responses"]
    }
    documented |= {("HEAD", path, status) for method, path, status in documented if method == "GET"}
    return {
        (method, rule, status)
        for method, rule, status in answered
        if rule in public and (method, public[rule], status) not in documented
    }


def _stop_all(instance: WebInstance) -> None:
    for process in instance.programs.values():
        process.terminate()
    for process in instance.programs.values():
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)


def _popen(
    command: list[str], log: IO[bytes], environment: dict[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log, start_new_session=True, **options
    )


def _lower(settings: dict[str, str]) -> dict[str, Any]:
    return {name.lower(): value for name, value in settings.items()}
