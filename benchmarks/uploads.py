"""Uploads and downloads against nginx' own, of the same file, in the same run, in turns. Ratios of medians.

    python -m benchmarks uploads [--bytes 1000000000] [--rounds 3] [--folder FOLDER]

The web side is the real one, nginx and gunicorn; this process stands in for the engine, so that nothing else
works meanwhile. The peer is a second nginx with the same settings, which takes the file by PUT (WebDAV) and
gives it by GET. A PUT ends when nginx has written the file, but not to disk: so each PUT is followed by an
fsync, and an upload is compared with both, without it and with it. An upload ends with the job's record; what
the application does after the last byte (SHA-256, fsync, record) is told by its log, and shown apart.

"Written" is what the processes gave the disk to write (/proc/PID/io, write_bytes), divided by what was sent.
CPU seconds are those of the servers, without curl's: where other work goes on, they tell more than the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from app.jobs.job import OWNER, JobState
from app.programs.preflight import find_nginx
from app.storage.data_folder import DataFolder
from app.wakeups import Wakeups
from benchmarks.machine import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sample_reports import SANDBOX, finished_report, ready_model
from stores import Stores

SECONDS = 600.0
RAW = ("-H", "Content-Type: application/octet-stream", "-H", "Expect:", "-H", "Prefer: respond-async")
PEER_CONF = """
daemon off;
{user}
pid "{folder}/nginx.pid";
worker_processes 4;
error_log stderr crit;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_buffer_size 256k;
    client_max_body_size 0;
    client_body_temp_path "{folder}/body";
    proxy_temp_path "{folder}/proxy";
    fastcgi_temp_path "{folder}/fastcgi";
    uwsgi_temp_path "{folder}/uwsgi";
    scgi_temp_path "{folder}/scgi";
    server {{
        listen 127.0.0.1:{port};
        root "{folder}/files";
        dav_methods PUT DELETE;
    }}
}}
"""


@dataclass
class Times:
    """Seconds of every round, by what was done; and bytes written, divided by bytes sent."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    written: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


@dataclass(frozen=True)
class Web:
    """The web side of an instance, with this process in the engine's place."""

    folder: DataFolder
    port: int
    log: Path
    processes: list[subprocess.Popen[bytes]]
    store: Stores
    epoch: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def last_handling_seconds(self) -> float:
        """What the application took for the last request that it logged."""
        lines = [
            line for line in self.log.read_text().splitlines() if '"event":"request"' in line.replace(" ", "")
        ]
        return float(json.loads(lines[-1])["seconds"])

    def written_bytes(self) -> int:
        return sum(one.io_counters().write_bytes for one in _tree(self.processes))


@dataclass(frozen=True)
class Peer:
    url: str
    processes: list[subprocess.Popen[bytes]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks uploads", description=__doc__)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure; a temporary one if none"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="uploads-") as name:
        folder = Path(name)
        video = folder / "video"
        _write_random(video, arguments.bytes)
        with _web(folder / "data") as web, _peer(folder / "peer") as peer:
            _report(_measure(web, peer, video, arguments.rounds), video.stat().st_size)


def _measure(web: Web, peer: Peer, video: Path, rounds: int) -> Times:
    times, files = Times(), video.parent / "peer" / "files"
    uploads = _uploads(web, video)
    document = _give_document(web, video)
    os.link(document, files / "document")
    for _ in range(rounds):
        _clear_disk()
        cpu = _cpu_seconds(peer.processes)
        times.seconds["PUT"].append(_curl("-T", str(video), f"{peer.url}/video"))
        times.cpu["PUT"].append(_cpu_seconds(peer.processes) - cpu)
        times.seconds["fsync of the PUT"].append(_fsync(files / "video"))
        (files / "video").unlink()
        for name, upload in uploads.items():
            _clear_disk()
            before, cpu = web.written_bytes(), _cpu_seconds(web.processes)
            times.seconds[name].append(upload())
            times.written[name].append((web.written_bytes() - before) / video.stat().st_size)
            times.cpu[name].append(_cpu_seconds(web.processes) - cpu)
            times.seconds[f"{name}, after the last byte"].append(web.last_handling_seconds())
            _remove_uploads(web)
        job_id = document.parent.name
        times.seconds["GET of the file"].append(_curl("-o", "/dev/null", f"{peer.url}/document"))
        times.seconds["GET of the result"].append(
            _curl("-o", "/dev/null", f"{web.url}/v1/jobs/{job_id}/result")
        )
    return times


def _uploads(web: Web, video: Path) -> dict[str, Callable[[], float]]:
    url = f"{web.url}/v1/detections"
    found = {
        "raw": lambda: _curl(*RAW, "-X", "POST", "-T", str(video), url),
        "raw at 100 MB/s": lambda: _curl(*RAW, "--limit-rate", "100M", "-X", "POST", "-T", str(video), url),
        "chunked": lambda: _curl(
            *RAW, "-H", "Transfer-Encoding: chunked", "-X", "POST", "-T", str(video), url
        ),
        "form": lambda: _curl(*RAW[2:], "-F", f"video=@{video}", url),
    }
    if requests.options(f"{web.url}/v1/uploads", timeout=30).status_code != 404:
        found["tus"] = lambda: _tus(web, video)
    return found


def _tus(web: Web, video: Path) -> float:
    """One POST that creates the upload and one PATCH with all of it; the PATCH is timed."""
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(video.stat().st_size)}
    created = requests.post(f"{web.url}/v1/uploads", headers=headers, timeout=30)
    created.raise_for_status()
    options = [
        "Tus-Resumable: 1.0.0",
        "Upload-Offset: 0",
        "Content-Type: application/offset+octet-stream",
        "Expect:",
    ]
    arguments = [argument for option in options for argument in ("-H", option)]
    address = requests.compat.urljoin(web.url, created.headers["Location"])
    return _curl(*arguments, "-X", "PATCH", "-T", str(video), address)


def _remove_uploads(web: Web) -> None:
    document = [job.id for job in web.store.list(state=JobState.SUCCEEDED, owner=OWNER)]
    for job in web.store.list(limit=100, owner=OWNER):
        if job.id not in document:
            web.store.request_cancel(job.id, owner=OWNER)
            web.store.delete(job.id, owner=OWNER)
            web.folder.remove_job(job.id)


def _give_document(web: Web, video: Path) -> Path:
    """A succeeded job whose document has the video's bytes: what they are does not matter to a download."""
    url, headers = f"{web.url}/v1/detections", {"Content-Type": "video/mp4", "Prefer": "respond-async"}
    answer = requests.post(url, data=b"x", headers=headers, timeout=30)
    if answer.status_code != 202:
        raise RuntimeError(answer.text)
    job_id = answer.json()["id"]
    document = web.folder.result(job_id, "pairs")
    shutil.copyfile(video, document)
    with document.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    web.store.queue.claim(web.epoch)
    report = finished_report(document.stat().st_size, digest)
    web.store.queue.finish(job_id, web.epoch, JobState.SUCCEEDED, report=report)
    return document


@contextmanager
def _web(data: Path) -> Iterator[Web]:
    folder, port = DataFolder(data), _free_port()
    folder.create()
    store = Stores(folder.database, Wakeups(folder.wakeups))
    store.database.create()
    epoch = store.queue.begin_epoch(pid=os.getpid())
    store.heartbeats.report_engine(
        epoch, ready=True, models=[ready_model("hog-people", "person")], sandbox=SANDBOX
    )
    environment = os.environ | {
        "FRAMEBOX_DATA": str(data),
        "FRAMEBOX_HOST": "127.0.0.1",
        "FRAMEBOX_PORT": str(port),
        "FRAMEBOX_ATTACH": "false",
    }
    log = data.with_name("web.log")
    processes = []
    with log.open("wb") as output:
        try:
            for program in ("web", "nginx"):
                command = [sys.executable, "-m", "app", program]
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            _wait(f"http://127.0.0.1:{port}/livez")
            yield Web(folder, port, log, processes, store, epoch)
        finally:
            _stop(processes)


def _tree(processes: list[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    parents = [psutil.Process(process.pid) for process in processes]
    return [*parents, *(child for parent in parents for child in parent.children(recursive=True))]


def _cpu_seconds(processes: list[subprocess.Popen[bytes]]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in _tree(processes))


@contextmanager
def _peer(folder: Path) -> Iterator[Peer]:
    """nginx that takes files by PUT."""
    (folder / "files").mkdir(parents=True)
    port = _free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(PEER_CONF.format(folder=folder, port=port, user=user))
    process = subprocess.Popen([find_nginx(), "-e", "stderr", "-p", str(folder), "-c", str(configuration)])
    try:
        _wait(f"http://127.0.0.1:{port}/document")
        yield Peer(f"http://127.0.0.1:{port}", [process])
    finally:
        _stop([process])


def _report(times: Times, size_bytes: int) -> None:
    print(describe_machine())
    print(f"{size_bytes} bytes of random data; medians of {len(times.seconds['PUT'])} rounds\n")
    put, synced = times.median("PUT"), times.median("PUT") + times.median("fsync of the PUT")
    cpu = {name: f"{statistics.median(seconds):.2f} CPU s" for name, seconds in times.cpu.items()}
    print(f"{'PUT':28} {put:7.2f} s  {size_bytes / put / 1e6:6.0f} MB/s  {cpu['PUT']}")
    print(f"{'PUT and fsync':28} {synced:7.2f} s  {size_bytes / synced / 1e6:6.0f} MB/s")
    for name in times.written:
        seconds, handling = times.median(name), times.median(f"{name}, after the last byte")
        print(
            f"{name:28} {seconds:7.2f} s  {size_bytes / seconds / 1e6:6.0f} MB/s  "
            f"{cpu[name]}  {put / seconds:.2f} of PUT, {synced / seconds:.2f} of PUT and fsync; "
            f"handled for {handling:.2f} s; written {statistics.median(times.written[name]):.3f} of sent"
        )
    for name in ("GET of the file", "GET of the result"):
        seconds = times.median(name)
        print(f"{name:28} {seconds:7.2f} s  {size_bytes / seconds / 1e6:6.0f} MB/s")
    print(f"result of file: {times.median('GET of the file') / times.median('GET of the result'):.2f}")


def _write_random(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        while (left := size_bytes - file.tell()) > 0:
            file.write(os.urandom(min(left, 1 << 20)))


def _curl(*arguments: str) -> float:
    """Run curl; return the seconds that its transfer took."""
    command = ["curl", "-sS", "--fail-with-body", "-w", "\n%{time_total}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}{done.stdout[-500:]}")
    return float(done.stdout.rpartition("\n")[2])


def _fsync(path: Path) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        began = time.perf_counter()
        os.fsync(descriptor)
        return time.perf_counter() - began
    finally:
        os.close(descriptor)


def _clear_disk() -> None:
    """What earlier rounds left to write is written, so that it costs this one nothing."""
    os.sync()


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            if requests.get(url, timeout=5).status_code < 500:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{url} does not answer")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(timeout=60)
