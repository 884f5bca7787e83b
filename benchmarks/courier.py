"""The courier with every place busy: speed and memory of fetches, callbacks a second, and what kills cost.

Fetches are compared, in the same run, with what no program can go below: to receive the same bytes over TLS
from the same server, hash them and write them, in one thread without a database.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import multiprocessing
import os
import random
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from app.egress.addresses import AddressRules
from app.egress.targets import parse_target
from app.jobs.database import Database
from app.jobs.heartbeats import Heartbeats
from app.jobs.intake import Intake
from app.jobs.job import OWNER, Callback, DeliveryState, JobRequest, JobState, VideoSource
from app.jobs.store import JobStore
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.ingest import Ingest
from app.storage.space import SpaceLedger
from app.storage.spool import Spool
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
BLOCK = random.Random(1).randbytes(MIB)
SECRET = "whsec_" + "QUFB" * 10
DEADLINE_SECONDS = 600.0


class _Server(BaseHTTPRequestHandler):
    """GET /MEBIBYTES gives so many, with ranges and an entity tag; POST is answered 204."""

    protocol_version = "HTTP/1.1"
    pause_seconds = 0.0  # after each mebibyte

    def do_GET(self) -> None:
        size = int(self.path.split("/")[1]) * MIB
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", '"1"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.close_connection = True
        try:
            while start < size:
                piece = memoryview(BLOCK)[start % MIB :]
                self.wfile.write(piece)
                start += len(piece)
                time.sleep(self.pause_seconds)
        except OSError:
            return  # the courier was killed

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


def _serve(folder: Path, pause_seconds: float, port: Any) -> None:
    import trustme  # noqa: PLC0415 - of the requirements for development

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    _Server.pause_seconds = pause_seconds
    ThreadingHTTPServer.request_queue_size = 128
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        port.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def _server(folder: Path, pause_seconds: float = 0.0) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, pause_seconds, there))
    process.start()
    try:
        yield f"https://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


class _Folder:
    """A data folder with jobs, and the courier that works on it."""

    def __init__(self, root: Path) -> None:
        self.data = DataFolder(root / "data")
        self.data.create()
        database = Database(self.data.database)
        database.create()
        self.store, self.heartbeats = JobStore(database), Heartbeats(database)
        self._space = SpaceLedger(self.data.space_ledger, self.data.root, min_free_bytes=0)
        self._environment = os.environ | {
            "FRAMEBOX_DATA": str(self.data.root),
            "FRAMEBOX_ALLOWED_HOSTS": "127.0.0.1",
            "FRAMEBOX_CA_FILE": str(root / "ca.pem"),
            "FRAMEBOX_WEBHOOK_SECRET": SECRET,
            "FRAMEBOX_MIN_FREE_BYTES": "0",
        }

    def start_courier(self) -> psutil.Popen:
        command = [sys.executable, "-m", "app", "courier"]
        return psutil.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)

    def fetch(self, url: str) -> str:
        request = JobRequest(OWNER, "r", "none", DetectionOptions())
        intake = Intake(self.data, self.store, Spool(self.data, self._space), Ingest(()))
        return intake.from_url(request, url, parse_target(url, AddressRules(["127.0.0.1"]))).id

    def cancelled(self, url: str) -> str:
        """A job that has ended, with a callback to be delivered."""
        request = JobRequest(OWNER, "r", "none", DetectionOptions(), callback=Callback(url, url))
        job_id = self.store.add(new_job_id(), request, VideoSource(1, "0" * 64, None)).id
        return self.store.request_cancel(job_id, owner=OWNER).id

    def are_fetched(self, job_ids: list[str]) -> bool:
        jobs = self.store.find(job_ids, owner=OWNER).values()
        assert all(job.state is JobState.QUEUED for job in jobs), [job.problem for job in jobs]
        return all(job.waiting is None for job in jobs)


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def _bare(url: str, mebibytes: int, folder: Path) -> float:
    """Seconds to receive, hash and write the bytes with nothing around it."""
    split = urlsplit(url)
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    began, digest = time.monotonic(), hashlib.sha256()
    connection = http.client.HTTPSConnection(split.hostname or "", split.port, context=context)
    connection.request("GET", f"/{mebibytes}")
    with connection.getresponse() as response, (folder / "bare").open("wb") as file:
        while piece := response.read1(256 * 1024):
            digest.update(piece)
            file.write(piece)
        os.fsync(file.fileno())
    connection.close()
    (folder / "bare").unlink()
    return time.monotonic() - began


def measure_fetches(mebibytes: int) -> None:
    with tempfile.TemporaryDirectory() as name, _server(Path(name)) as url:
        folder = _Folder(Path(name))
        bare_seconds = _bare(url, mebibytes, Path(name))
        courier = folder.start_courier()
        _wait(folder.heartbeats.courier_at)
        for at_once in (1, 4):
            began, cpu = time.monotonic(), sum(courier.cpu_times()[:2])
            ids = [folder.fetch(f"{url}/{mebibytes}/{at_once}/{number}") for number in range(at_once)]
            _wait(lambda ids=ids: folder.are_fetched(ids))
            seconds, cpu = time.monotonic() - began, sum(courier.cpu_times()[:2]) - cpu
            speed, bare = at_once * mebibytes / seconds, mebibytes / bare_seconds
            print(
                f"{at_once} fetches of {mebibytes} MiB at a time: {speed:.0f} MiB/s together, "
                f"{speed / bare:.2f} of bare receiving, hashing and writing ({bare:.0f} MiB/s); "
                f"{1024 * cpu / (at_once * mebibytes):.1f} CPU seconds a GiB"
            )
        _print_memory(courier)
        courier.terminate()
        courier.wait()


def measure_callbacks(count: int) -> None:
    with tempfile.TemporaryDirectory() as name, _server(Path(name)) as url:
        folder = _Folder(Path(name))
        ids = [folder.cancelled(f"{url}/{number}") for number in range(count)]
        courier = folder.start_courier()
        _wait(folder.heartbeats.courier_at)
        began = time.monotonic()

        def delivered() -> int:
            jobs = folder.store.find(ids, owner=OWNER).values()
            return sum(each.state is DeliveryState.DELIVERED for job in jobs for each in job.deliveries)

        _wait(lambda: delivered() == count)
        print(f"{count} callbacks to one server over TLS: {count / (time.monotonic() - began):.0f} a second")
        _print_memory(courier)
        courier.terminate()
        courier.wait()


def measure_kills(kills: int, mebibytes: int) -> None:
    """Kill the courier at random moments of one fetch, and compare the bytes."""
    with tempfile.TemporaryDirectory() as name, _server(Path(name), pause_seconds=0.05) as url:
        folder = _Folder(Path(name))
        job_id, killed, went_on = folder.fetch(f"{url}/{mebibytes}"), 0, 0
        while not folder.are_fetched([job_id]):
            began = time.time()
            courier = folder.start_courier()
            before = folder.store.get(job_id, owner=OWNER).source.received_bytes or 0
            if killed < kills:
                _wait(lambda began=began: folder.heartbeats.courier_at() > began)
                time.sleep(random.uniform(0.0, 8.0))
                courier.kill()
                killed += 1
            else:
                _wait(lambda: folder.are_fetched([job_id]))
                courier.terminate()
            courier.wait()
            went_on += (folder.store.get(job_id, owner=OWNER).source.received_bytes or 0) > before > 0
        expected = hashlib.sha256()
        for _ in range(mebibytes):
            expected.update(BLOCK)
        same = folder.store.get(job_id, owner=OWNER).source.sha256 == expected.hexdigest()
        left = [path.name for path in folder.data.job(job_id).iterdir()]
        print(f"{killed} kills in one fetch of {mebibytes} MiB, {went_on} of them gone on from")
        print(f"bytes equal: {same}")
        print(f"in its folder: {left}")


def _print_memory(courier: psutil.Popen) -> None:
    status = Path(f"/proc/{courier.pid}/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f"peak resident memory of the courier: {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks courier", description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=512)
    parser.add_argument("--callbacks", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    chosen = parser.parse_args()
    print(describe_machine())
    if chosen.mebibytes:
        measure_fetches(chosen.mebibytes)
    if chosen.callbacks:
        measure_callbacks(chosen.callbacks)
    if chosen.kills:
        measure_kills(chosen.kills, 50 * chosen.kills)
