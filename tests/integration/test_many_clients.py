"""Slow, stalled and hostile clients by the hundred: whoever behaves is served as if they were not there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from double_engine import document
from raw_http import RawAnswer, exchange, post_head
from waiting import wait_until
from web_instance import WebInstance, running_instance

SECONDS = 30.0
VIDEO = {"Content-Type": "video/mp4"}
FORM = "multipart/form-data; boundary=b"
FORM_START = b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
DRIP_SECONDS = 0.5
CLIENT_LIMIT = 10  # requests of an address that hold a thread

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Crowd:
    """Clients on an event loop of its own, each from an address of 127.0.0.0/8; counts what they see."""

    def __init__(self, port: int) -> None:
        self.connected = 0
        self.answers: list[bytes] = []  # the first line of each
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd")
        self._thread.start()
        self._tasks: list[Any] = []

    def add(self, behaviour: Behaviour, count: int, host: int) -> None:
        """Let `count` clients of the address 127.0.0.`host` behave so."""
        for _ in range(count):
            client = self._client(behaviour, f"127.0.0.{host}")
            self._tasks.append(asyncio.run_coroutine_threadsafe(client, self._loop))

    async def _client(self, behaviour: Behaviour, address: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        self.connected += 1
        answer = asyncio.ensure_future(self._take_answer(reader))
        try:
            with contextlib.suppress(ConnectionError):  # it was cut off
                await behaviour(reader, writer)
        finally:
            answer.cancel()
            writer.close()

    async def _take_answer(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            self.answers.append(await reader.readline())

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    async def _drain(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def crowd_at(instance: WebInstance) -> Iterator[Crowd]:
    crowd = Crowd(instance.port)
    try:
        yield crowd
    finally:
        crowd.close()


async def _drip(writer: asyncio.StreamWriter, head: bytes) -> None:
    """A byte now and then, for ever."""
    writer.write(head)
    while True:
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)
        writer.write(b"x")


async def slow_raw_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _drip(writer, post_head("", "video/mp4", "Content-Length: 1000000") + b"\r\n")


async def slow_form(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _drip(writer, post_head("", FORM, "Content-Length: 1000000") + b"\r\n" + FORM_START)


async def stalled_form(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(post_head("", FORM, "Content-Length: 1000000") + b"\r\n" + FORM_START)
    await asyncio.sleep(3600)


async def slow_headers(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _drip(writer, b"GET /v1/jobs HTTP/1.1\r\nX-Slow: ")


def reader_of(path: str) -> Behaviour:
    async def slow_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Asks for a large answer and takes next to nothing of it."""
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.sleep(3600)

    return slow_reader


def post(instance: WebInstance, data: bytes, **options: Any) -> requests.Response:
    return requests.post(
        f"{instance.url}/v1/detections", data=data, headers=VIDEO, timeout=SECONDS, **options
    )


def nothing_arrives(instance: WebInstance) -> bool:
    """No upload is under way, neither the application's nor nginx' own."""
    bodies = [path for path in instance.folder.bodies.rglob("*") if path.is_file()]
    return not bodies and not [*instance.folder.incoming.iterdir()]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    settings = {"CLIENT_LONG_REQUESTS": str(CLIENT_LIMIT), "CLIENT_CONNECTIONS": "200"}
    with running_instance(tmp_path_factory.mktemp("crowd"), **settings) as instance:
        yield instance


def test_five_hundred_who_hardly_move_hold_nobody_up(instance: WebInstance):
    job_id = post(instance, b'{"frames": 200000}').headers["Framebox-Job"]  # ten megabytes of answer
    with crowd_at(instance) as crowd:
        crowd.add(slow_raw_body, 100, host=2)
        crowd.add(slow_form, 100, host=3)
        crowd.add(stalled_form, 50, host=4)
        crowd.add(slow_headers, 100, host=5)
        crowd.add(reader_of(f"/v1/jobs/{job_id}/result"), 150, host=6)
        refused = 3 * CLIENT_LIMIT
        wait_until(lambda: crowd.connected == 500 and len(crowd.answers) >= 250 - refused)
        for _ in range(20):
            assert requests.get(f"{instance.url}/readyz", timeout=SECONDS).status_code == 200
        large = os.urandom(20_000_000)
        assert post(instance, large).status_code == 200
        form = {"video": ("v", b'{"frames": 7}')}
        answer = requests.post(f"{instance.url}/v1/detections", files=form, timeout=SECONDS)
        assert answer.content == b"".join(document(7))
        assert not [line for line in crowd.answers if line and not line.startswith(b"HTTP/1.1 503 ")]
    wait_until(lambda: nothing_arrives(instance))


def test_one_address_cannot_take_all_places_and_is_told_so(instance: WebInstance):
    with crowd_at(instance) as crowd:
        crowd.add(slow_form, CLIENT_LIMIT, host=1)
        wait_until(lambda: len([*instance.folder.incoming.iterdir()]) == CLIENT_LIMIT)
        refused = exchange(instance.port, post_head("", "video/mp4", "Content-Length: 3") + b"\r\nabc")
        assert (refused.status, refused.problem["code"]) == (503, "busy")
        assert "this address" in refused.problem["detail"]
        assert int(refused.headers["retry-after"]) > 0
        assert requests.get(f"{instance.url}/v1/jobs", timeout=SECONDS).ok, "what holds no thread is served"
        other = requests.Session()
        other.mount("http://", _From("127.0.0.7"))
        assert other.post(f"{instance.url}/v1/detections", data=b"{}", headers=VIDEO, timeout=SECONDS).ok
    wait_until(lambda: nothing_arrives(instance))
    assert post(instance, b"{}").ok, "the places are free again"


class _From(requests.adapters.HTTPAdapter):
    """Connects from an address of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, source_address=(self._address, 0))


@pytest.mark.parametrize(
    ("behaviour", "head"),
    [
        (slow_form, post_head("", FORM, "Content-Length: 1000000") + b"\r\n" + FORM_START),
        (None, post_head("", "video/mp4", "Transfer-Encoding: chunked") + b"\r\n" + b"1\r\nx\r\n" * 3),
    ],
    ids=["drips", "stalls in the middle of chunks"],
)
def test_an_upload_below_the_minimum_pace_is_cut_off_and_told(tmp_path: Path, behaviour: Any, head: bytes):
    pace = {"MIN_UPLOAD_BYTES_PER_SECOND": "1000000", "UPLOAD_PACE_SECONDS": "1"}
    with running_instance(tmp_path, **pace) as instance:
        if behaviour:
            with crowd_at(instance) as crowd:
                crowd.add(behaviour, 1, host=1)
                answer = exchange(instance.port, head)
                wait_until(lambda: nothing_arrives(instance))
        else:
            answer = exchange(instance.port, head)
        assert (answer.status, answer.problem["code"]) == (408, "upload_too_slow")
        assert answer.problem["min_bytes_per_second"] == 1_000_000
        wait_until(lambda: nothing_arrives(instance))
        fast = requests.post(
            f"{instance.url}/v1/detections", files={"video": ("v", bytes(30_000_000))}, timeout=SECONDS
        )
        assert fast.status_code == 200, json.dumps(fast.json())


# ---- raw uploads that find no place with nginx


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    """All places for raw uploads are taken by clients of 127.0.0.2, which may have no more."""
    settings = {"MAX_RAW_UPLOADS": "4", "CLIENT_LONG_REQUESTS": "4"}
    threads = {"HTTP_THREADS": "32", "HTTP_WORKERS": "1"}  # 4 uploads beyond, 2 of one address
    folder = tmp_path_factory.mktemp("crowded")
    with running_instance(folder, **settings, **threads) as instance, crowd_at(instance) as crowd:
        crowd.add(raw_body_that_slows_down, 4, host=2)
        wait_until(lambda: len(bodies(instance)) == 4)
        yield instance


async def raw_body_that_slows_down(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """nginx has made its file by then."""
    head = post_head("", "video/mp4", "Content-Length: 1000000") + b"\r\n"
    await _drip(writer, head + bytes(500_000))


def bodies(instance: WebInstance) -> list[Path]:
    return [*instance.folder.bodies.glob(f"*/{'?' * 10}")]


def received(instance: WebInstance) -> list[Path]:
    """The uploads that the application reads."""
    return [*instance.folder.incoming.iterdir()]


def sent_from(address: str, instance: WebInstance, data: bytes) -> socket.socket:
    here, there = (address, 0), ("127.0.0.1", instance.port)
    connection = socket.create_connection(there, timeout=SECONDS, source_address=here)
    connection.sendall(data)
    return connection


def test_raw_uploads_that_hardly_move_keep_no_other_away_and_one_that_comes_later_is_cut_off(tmp_path: Path):
    settings = {"MIN_UPLOAD_BYTES_PER_SECOND": "1000000", "UPLOAD_PACE_SECONDS": "1", "MAX_RAW_UPLOADS": "2"}
    with running_instance(tmp_path, **settings) as instance, crowd_at(instance) as crowd:
        for host in (2, 3):
            crowd.add(raw_body_that_slows_down, 1, host=host)
        wait_until(lambda: len(bodies(instance)) == 2)
        large = b'{"frames": 7}' + b" " * 30_000_000
        answer = post(instance, large)
        assert (answer.status_code, answer.content) == (200, b"".join(document(7)))
        report = requests.get(f"{instance.url}/v1/jobs/{answer.headers['Framebox-Job']}", timeout=SECONDS)
        assert report.json()["source"]["sha256"] == hashlib.sha256(large).hexdigest()
        slow = exchange(instance.port, post_head("", "video/mp4", "Content-Length: 1000000") + b"\r\nabc")
        assert (slow.status, slow.problem["code"]) == (408, "upload_too_slow")
        wait_until(lambda: not received(instance))


def test_a_raw_upload_that_the_application_reads_is_admitted_as_others_are(crowded: WebInstance):
    head = post_head("?model=none", "video/mp4", "Content-Length: 50000000") + b"\r\n"
    refused = exchange(crowded.port, head + bytes(50_000_000))
    assert (refused.status, refused.problem["parameter"]) == (400, "model")
    forged = ("Framebox-Body-File: /etc/hostname", "Framebox-Upload-Length: 3", "X-Request-ID: forged")
    head = post_head("?stride=2", "video/mp4", "Content-Length: 13", "Idempotency-Key: k", *forged)
    answer = exchange(crowded.port, head + b"Expect: 100-continue\r\n\r\n" + b'{"frames": 7}')
    assert (answer.status, answer.continued) == (200, True)
    assert answer.body == b"".join(document(7))
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    report = requests.get(f"{crowded.url}/v1/jobs/{answer.headers['framebox-job']}", timeout=SECONDS).json()
    assert report["options"]["stride"] == 2
    again = exchange(crowded.port, head + b"\r\n" + b'{"frames": 7}')
    assert (again.status, again.headers["framebox-job"]) == (200, answer.headers["framebox-job"])
    assert again.headers["framebox-attached"] == "true"


def test_a_client_gets_no_more_places_where_the_application_reads_its_raw_uploads(crowded: WebInstance):
    upload = post_head("", "video/mp4", "Content-Length: 2", "X-Forwarded-For: 203.0.113.9") + b"\r\n{}"
    with contextlib.closing(sent_from("127.0.0.2", crowded, upload)) as connection:
        assert RawAnswer(connection.recv(65536)).status == 503
    assert exchange(crowded.port, upload).status == 200


def test_raw_uploads_that_not_even_the_application_has_a_place_for_are_told_so(crowded: WebInstance):
    with crowd_at(crowded) as crowd:
        crowd.add(slow_raw_body, 3, host=4)
        wait_until(lambda: crowd.answers and len(received(crowded)) == 2)
        assert crowd.answers[0].startswith(b"HTTP/1.1 503 "), "half of the places are for other addresses"
        crowd.add(slow_raw_body, 2, host=5)
        wait_until(lambda: len(received(crowded)) == 4)
        head = post_head("", "video/mp4", "Content-Length: 20000000") + b"\r\n"
        for _ in range(10):
            refused = exchange(crowded.port, head + bytes(20_000_000))
            assert (refused.status, refused.problem["code"]) == (503, "busy")
            assert int(refused.headers["retry-after"]) > 0
        form = {"video": ("v", b"{}")}
        assert requests.post(f"{crowded.url}/v1/detections", files=form, timeout=SECONDS).ok
    wait_until(lambda: not received(crowded))


def test_a_resumable_upload_that_is_cut_off_keeps_what_has_come(tmp_path: Path):
    pace = {"MIN_UPLOAD_BYTES_PER_SECOND": "1000000", "UPLOAD_PACE_SECONDS": "1"}
    tus = {"Tus-Resumable": "1.0.0"}
    with running_instance(tmp_path, **pace) as instance:
        creation = tus | {"Upload-Length": "1000000"}
        made = requests.post(f"{instance.url}/v1/uploads", headers=creation, timeout=SECONDS)
        address = made.headers["Location"]
        head = (
            f"PATCH {address} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            "Content-Type: application/offset+octet-stream\r\nContent-Length: 1000000\r\n\r\n"
        )
        answer = exchange(instance.port, head.encode() + bytes(300_000))
        assert (answer.status, answer.problem["code"]) == (408, "upload_too_slow")
        known = requests.head(f"{instance.url}{address}", headers=tus, timeout=SECONDS)
        assert known.headers["Upload-Offset"] == "300000"


@pytest.mark.parametrize(
    ("address", "same", "another"),
    [
        ("203.0.113.1", "203.0.113.1", "203.0.113.2"),
        ("2001:db8:0:a::1", "2001:db8:0:a:ff0a::2", "2001:db8:0:b::1"),
    ],
    ids=["an IPv4 address", "a /64 of IPv6"],
)
def test_a_client_behind_a_trusted_proxy_is_known_by_the_address_that_the_proxy_names(
    tmp_path: Path, address: str, same: str, another: str
):
    settings = {"CLIENT_LONG_REQUESTS": "1", "TRUSTED_PROXIES": "127.0.0.1"}
    with running_instance(tmp_path, **settings) as instance:
        hold = b'{"hold":"%s"}' % str(tmp_path / "go").encode()
        url, waiting = f"{instance.url}/v1/detections", {**VIDEO, "X-Forwarded-For": address}
        waiter = threading.Thread(
            target=requests.post, args=(url,), kwargs={"data": hold, "headers": waiting, "timeout": SECONDS}
        )
        waiter.start()
        wait_until(lambda: requests.get(f"{instance.url}/v1/jobs", timeout=SECONDS).json()["jobs"])
        again = requests.post(url, data=b"{}", headers=VIDEO | {"X-Forwarded-For": same}, timeout=SECONDS)
        forged = requests.post(
            url, data=b"{}", headers=VIDEO | {"X-Forwarded-For": f"198.51.100.7, {same}"}, timeout=SECONDS
        )
        assert (again.status_code, forged.status_code) == (503, 503)
        asynchronous = {**VIDEO, "Prefer": "respond-async", "X-Forwarded-For": another}
        assert requests.post(url, data=b"{}", headers=asynchronous, timeout=SECONDS).status_code == 202
        (tmp_path / "go").touch()
        waiter.join(SECONDS)
