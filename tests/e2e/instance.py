"""A whole instance, started as `make serve` starts it: supervisor, nginx, gunicorn, engine, hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import requests
from killing import kill_all
from ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0  # a default model of torch is tried and converted first
STOP_SECONDS = 60.0
POLL_SECONDS = 0.02
SLOW_POLL_SECONDS = 0.1  # of waits that take longer: asking takes a core from what is waited for
ENDS_WITH_ITS_PARENT = ("setpriv", "--pdeathsig", "TERM")  # a worker that is interrupted runs no teardown


class Instance:
    """One instance with a data folder and a port of its own. Its log is a file, shown when it fails.

    What the first one measures of the built-in models, the next ones find in their data folders.
    """

    measured: Path | None = None  # the folder that keeps it for this run of the tests

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        self._has_own_models = "models" in settings
        self.port = free_port()
        self.log = data.parent / f"{data.name}.log"
        self._environment = {
            **os.environ,
            "FRAMEBOX_HOST": "127.0.0.1",
            "FRAMEBOX_PORT": str(self.port),
            "FRAMEBOX_DATA": str(data),
            "FRAMEBOX_ATTACH": "false",  # tests post the same clips again and again
            **{f"FRAMEBOX_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.session = requests.Session()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # ---- its life

    def start(self, *, wait_until_ready: bool = True, **popen: Any) -> Self:
        self._take_verdicts()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*ENDS_WITH_ITS_PARENT, sys.executable, "-m", "app", "serve"],
                cwd=CHECKOUT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **popen,
            )
        if wait_until_ready:
            self.wait(self.is_ready, START_SECONDS, "ready")
            self._leave_verdicts()
        return self

    def stop(self) -> None:
        """Ask it to stop, and check that nothing of it is left."""
        if self._process is None:
            return
        processes = self.processes()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_SECONDS)
        self._process = None
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive, f"left running: {[(p.pid, p.cmdline()) for p in alive]}\n{self.tail()}"

    def _take_verdicts(self) -> None:
        verdicts = self.data / "verdicts"
        if self.measured is not None and self.measured.is_dir() and not verdicts.exists():
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            verdicts.mkdir(mode=0o700)
            for file in self.measured.glob("*.json"):
                shutil.copy(file, verdicts)

    def _leave_verdicts(self) -> None:
        if self.measured is None or self._has_own_models:
            return
        self.measured.mkdir(exist_ok=True)
        for file in (self.data / "verdicts").glob("*.json"):
            unfinished = self.measured / f"{file.name}.{os.getpid()}"
            shutil.copy(file, unfinished)
            unfinished.replace(self.measured / file.name)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()

    def kill(self) -> None:
        """End what is left of it, whatever state it is in."""
        if self._process is not None:
            kill_all(self.processes())
            self._process.wait(STOP_SECONDS)
            self._process = None

    # ---- what is going on

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def wait_until_models_are_tried(self) -> None:
        """Return when each model has passed its trial or is refused: an instance is ready long before."""

        def are_tried() -> bool:
            models = requests.get(f"{self.url}/v1/models", timeout=30).json()["models"]
            return all(model["state"] != "loading" for model in models)

        self.wait(are_tried, 300, "all models tried")

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Return what `condition` gives once it is true; fail with the log's end if it stays false."""
        deadline, pause = time.monotonic() + seconds, POLL_SECONDS
        while not (result := condition()):
            if self._process is not None and self.has_ended():
                raise AssertionError(f"the instance ended while waiting: {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} seconds: {what}\n{self.tail()}")
            time.sleep(pause)
            pause = min(pause * 1.1, SLOW_POLL_SECONDS)
        return result

    def tail(self, lines: int = 60) -> str:
        log = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in log if '"status":200' not in line][-lines:])

    def processes(self) -> list[psutil.Process]:
        """The supervisor and all its descendants."""
        if self._process is None:
            return []
        try:
            supervisor = psutil.Process(self._process.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def find(self, *words: str) -> list[psutil.Process]:
        """Its processes whose command line holds all `words`."""
        return [process for process in self.processes() if _has_words(process, words)]

    def engine(self) -> psutil.Process:
        (process,) = self.find("-m", "app", "engine")
        return process

    def hosts(self) -> list[psutil.Process]:
        return self.find("-m", "app", "host")

    def host(self) -> psutil.Process:
        """The one host. One that has just died is awaited: its replacement takes a moment."""
        self.wait(lambda: bool(self.hosts()), 60, "a host")
        (process,) = self.hosts()
        return process

    def decoders(self) -> list[psutil.Process]:
        """The decoder children that have a video now. Needs root: they cannot be looked into by others."""
        servers = [server for host in self.hosts() for server in host.children()]
        return [child for server in servers for child in server.children() if _has_video(child)]

    def http_workers(self) -> list[psutil.Process]:
        (master,) = [process for process in self.find("gunicorn") if process.ppid() == self.supervisor_pid]
        return master.children()

    @property
    def supervisor_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # ---- requests

    def post(
        self, video: Path, headers: dict[str, str] | None = None, /, **options: Any
    ) -> requests.Response:
        with video.open("rb") as body:
            return requests.post(
                f"{self.url}/v1/detections",
                params=options,
                data=body,
                headers={"Content-Type": "video/mp4", **(headers or {})},
                timeout=600,
            )

    def post_async(self, video: Path, **options: Any) -> str:
        """Post without waiting; return the job's id."""
        answer = self.post(video, {"Prefer": "respond-async"}, **options)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["Framebox-Job"])

    def report(self, job_id: str) -> dict[str, Any]:
        report: dict[str, Any] = requests.get(f"{self.url}/v1/jobs/{job_id}", timeout=30).json()
        return report

    def wait_for_end(self, job_id: str, seconds: float = 300.0) -> dict[str, Any]:
        ends = ("succeeded", "failed", "cancelled")
        self.wait(lambda: self.report(job_id)["state"] in ends, seconds, f"end of job {job_id}")
        return self.report(job_id)

    def result(self, job_id: str) -> bytes:
        answer = requests.get(f"{self.url}/v1/jobs/{job_id}/result", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.content


def _has_words(process: psutil.Process, words: tuple[str, ...]) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return all(any(word == part or part.endswith(f"/{word}") for part in line) for word in words)


def make_clip(path: Path, *, frames: int, size: str = "320x240", rate: int = 25, gop: int = 50) -> Path:
    """Write an H.264 clip with moving content of `frames` frames, a keyframe every `gop`."""
    source = f"testsrc2=size={size}:rate={rate}"
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", str(frames)]
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", str(gop), "-pix_fmt", "yuv420p"]
    subprocess.run([*command, *encoder, str(path)], check=True, timeout=300, stdin=subprocess.DEVNULL)
    return path


def repeat_clip(source: Path, path: Path, *, times: int, gop: int | None = None) -> Path:
    """Write `source` `times` times in a row: as they are, or encoded with a keyframe every `gop`."""
    command = ["ffmpeg", "-loglevel", "error", "-y", "-stream_loop", str(times - 1), "-i", str(source)]
    codec = ["copy"] if gop is None else ["libx264", "-crf", "18", "-preset", "veryfast", "-g", str(gop)]
    subprocess.run([*command, "-c:v", *codec, str(path)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    return path


def _has_video(child: psutil.Process) -> bool:
    """Whether it holds a file open. Children that are only ready have a socket and the null device."""
    try:
        return bool(child.open_files())
    except psutil.NoSuchProcess:
        return False
