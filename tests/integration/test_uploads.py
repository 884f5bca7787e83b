"""Resumable uploads through the real nginx and gunicorn: the protocol, broken connections, dead processes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import select
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from double_engine import document
from killing import kill_all
from raw_http import chunked, exchange
from waiting import wait_until
from web_instance import WebInstance, running_instance

LIMIT = 60_000_000
SECONDS = 20.0
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = TUS | {"Content-Type": "application/offset+octet-stream"}
VIDEO = b'{"frames": 4}'
PAGE = "https://app.example"
HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(
        tmp_path_factory.mktemp("uploads"), MAX_UPLOAD_BYTES=str(LIMIT), CORS_ORIGINS=PAGE
    ) as instance:
        yield instance


def metadata(**values: str) -> str:
    return ",".join(f"{key} {b64encode(value.encode()).decode()}".rstrip() for key, value in values.items())


def checksum(algorithm: str, data: bytes) -> str:
    return f"{algorithm} {b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class Client:
    """Requests to one instance's uploads. Addresses are as `Location` gives them."""

    def __init__(self, instance: WebInstance) -> None:
        self.instance = instance

    def send(
        self, method: str, address: str = "/v1/uploads", data: Any = None, **headers: str
    ) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.instance.url}{address}"
        return requests.request(method, url, data=data, headers=CHUNK | named, timeout=SECONDS)

    def create(self, length: int | None, **headers: str) -> str:
        told = {"Upload_Defer_Length": "1"} if length is None else {"Upload_Length": str(length)}
        answer = self.send("POST", **told, **headers)
        assert answer.status_code == 201, answer.text
        return answer.headers["Location"]

    def patch(self, address: str, offset: int, data: Any, **headers: str) -> requests.Response:
        return self.send("PATCH", address, data, Upload_Offset=str(offset), **headers)

    def offset(self, address: str) -> int:
        answer = self.send("HEAD", address)
        assert answer.status_code == 200
        return int(answer.headers["Upload-Offset"])

    def content(self, address: str) -> bytes:
        return (self.instance.folder.uploads / address.rpartition("/")[2] / "video").read_bytes()


@pytest.fixture(scope="module")
def client(instance: WebInstance) -> Client:
    return Client(instance)


def result(instance: WebInstance, job_id: str) -> bytes:
    def get() -> requests.Response:
        return requests.get(f"{instance.url}/v1/jobs/{job_id}/result", timeout=SECONDS)

    wait_until(lambda: get().status_code != 409)
    return get().content


# ---- the protocol


def test_the_server_tells_what_it_can(client: Client):
    answer = requests.options(f"{client.instance.url}/v1/uploads", timeout=SECONDS)  # without Tus-Resumable
    assert answer.status_code == 204
    assert answer.headers["Tus-Resumable"] == answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Max-Size"] == str(LIMIT)
    assert {"sha1", "sha256"} <= {*answer.headers["Tus-Checksum-Algorithm"].split(",")}
    assert {*answer.headers["Tus-Extension"].split(",")} == {
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "termination",
        "checksum",
        "expiration",
        "concatenation",
    }


def test_an_upload_goes_on_from_its_offset(client: Client):
    answer = client.send("POST", Upload_Length="10", Upload_Metadata=metadata(filename="a.mp4", flag=""))
    assert answer.status_code == 201
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert HTTP_DATE.fullmatch(answer.headers["Upload-Expires"])
    address = answer.headers["Location"]
    first = client.patch(address, 0, b"01234")
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "5")
    assert HTTP_DATE.fullmatch(first.headers["Upload-Expires"])
    head = client.send("HEAD", address)
    assert head.status_code == 200
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("5", "10")
    assert head.headers["Upload-Metadata"] == metadata(filename="a.mp4", flag="")
    assert head.headers["Cache-Control"] == "no-store"
    assert client.patch(address, 5, b"56789").headers["Upload-Offset"] == "10"
    assert client.content(address) == b"0123456789"
    assert client.offset(address) == 10


Request = tuple[str, dict[str, str], bytes]  # method, headers, body
REFUSED: dict[str, tuple[Request, int, str]] = {
    "no version": (("PATCH", {"Tus-Resumable": "", "Upload-Offset": "3"}, b"x"), 412, "tus_version"),
    "another version": (("HEAD", {"Tus-Resumable": "0.2.2"}, b""), 412, ""),
    "another version of a deletion": (("DELETE", {"Tus-Resumable": "2"}, b""), 412, "tus_version"),
    "an offset too small": (("PATCH", {"Upload-Offset": "2"}, b"x"), 409, "upload_offset_mismatch"),
    "an offset too large": (("PATCH", {"Upload-Offset": "4"}, b"x"), 409, "upload_offset_mismatch"),
    "no offset": (("PATCH", {}, b"x"), 400, "invalid_option"),
    "a negative offset": (("PATCH", {"Upload-Offset": "-1"}, b"x"), 400, "invalid_option"),
    "another type": (
        ("PATCH", {"Upload-Offset": "3", "Content-Type": "video/mp4"}, b"x"),
        415,
        "unsupported_media_type",
    ),
    "more than its length": (("PATCH", {"Upload-Offset": "3"}, b"x" * 8), 413, "too_large"),
    "another length": (("PATCH", {"Upload-Offset": "3", "Upload-Length": "9"}, b"x"), 400, "invalid_option"),
    "an unknown checksum": (
        ("PATCH", {"Upload-Offset": "3", "Upload-Checksum": "crc32 YQ=="}, b"x"),
        400,
        "invalid_option",
    ),
    "another checksum": (
        ("PATCH", {"Upload-Offset": "3", "Upload-Checksum": checksum("sha1", b"y")}, b"x"),
        460,
        "checksum_mismatch",
    ),
    "another method": (("PUT", {}, b"x"), 405, "method_not_allowed"),
    "no method named": (("POST", {}, b"x"), 405, "method_not_allowed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_an_upload_is_refused_and_changes_nothing(client: Client, name: str):
    (method, headers, data), status, code = REFUSED[name]
    address = client.create(10)
    assert client.patch(address, 0, b"012").ok
    answer = client.send(method, address, data, **headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    if code:
        assert answer.json()["code"] == code
    if status == 412:
        assert answer.headers["Tus-Version"] == "1.0.0"
    if status == 405:
        assert "PATCH" in answer.headers["Allow"]
    assert client.offset(address) == 3
    assert client.patch(address, 3, b"3456789").ok
    assert client.content(address) == b"0123456789"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Tus-Resumable": "1.1.0", "Upload-Length": "3"}, 412, "tus_version"),
        ({}, 400, "invalid_option"),
        ({"Upload-Length": "many"}, 400, "invalid_option"),
        ({"Upload-Length": str(LIMIT + 1)}, 413, "too_large"),
        ({"Upload-Defer-Length": "yes"}, 400, "invalid_option"),
        ({"Upload-Length": "3", "Upload-Metadata": "name ?"}, 400, "invalid_option"),
        ({"Upload-Length": "3", "Upload-Metadata": metadata(detect="colour=red")}, 400, "invalid_option"),
        ({"Upload-Length": "3", "Upload-Metadata": metadata(detect="model=birds")}, 400, "invalid_option"),
        ({"Upload-Concat": "final;/v1/uploads/none"}, 400, "invalid_option"),
        ({"Upload-Concat": f"final;/v1/uploads/{'0' * 32}"}, 404, "upload_not_found"),
    ],
)
def test_a_wrong_creation_is_refused_and_leaves_nothing(
    client: Client, headers: dict[str, str], status: int, code: str
):
    before = {*client.instance.folder.uploads.iterdir()}
    answer = client.send("POST", **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert {*client.instance.folder.uploads.iterdir()} == before


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
@pytest.mark.parametrize("name", ["0" * 32, "nothing", "..%2f..%2fjobs"])
def test_an_upload_that_there_is_not_is_not_found(client: Client, method: str, name: str):
    answer = client.send(
        method, f"/v1/uploads/{name}", b"x" if method == "PATCH" else None, Upload_Offset="0"
    )
    assert answer.status_code == 404
    assert "Upload-Offset" not in answer.headers


def test_a_client_without_patch_names_the_method(client: Client):
    address = client.create(3)
    answer = client.send("POST", address, b"abc", X_HTTP_Method_Override="PATCH", Upload_Offset="0")
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "3")
    assert client.send("POST", address, X_HTTP_Method_Override="HEAD").headers["Upload-Offset"] == "3"
    assert client.send("POST", address, X_HTTP_Method_Override="DELETE").status_code == 204
    assert client.send("HEAD", address).status_code == 404


def test_the_first_bytes_may_come_with_the_creation(client: Client):
    answer = client.send("POST", data=b"abc", Upload_Length="5", Upload_Checksum=checksum("sha256", b"abc"))
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "3")
    assert client.patch(answer.headers["Location"], 3, iter([b"d", b"e"])).headers["Upload-Offset"] == "5"
    before = {*client.instance.folder.uploads.iterdir()}
    refused = client.send("POST", data=b"abc", Upload_Length="5", Upload_Checksum=checksum("sha256", b"x"))
    assert refused.status_code == 460
    assert {*client.instance.folder.uploads.iterdir()} == before


def test_the_length_may_come_later(client: Client):
    address = client.create(None)
    assert client.patch(address, 0, b"abc").ok
    head = client.send("HEAD", address).headers
    assert (head["Upload-Defer-Length"], "Upload-Length" in head) == ("1", False)
    assert client.patch(address, 3, b"de", Upload_Length="5").headers["Upload-Offset"] == "5"
    assert client.send("HEAD", address).headers["Upload-Length"] == "5"


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
def test_a_body_with_its_checksum_is_taken(client: Client, algorithm: str):
    data = os.urandom(700_000)
    address = client.create(len(data))
    for start in (0, 400_000):
        piece = data[start : start + 400_000]
        assert client.patch(address, start, piece, Upload_Checksum=checksum(algorithm, piece)).ok
    assert client.content(address) == data


def test_an_upload_can_be_given_up(client: Client):
    address = client.create(5)
    assert client.send("DELETE", address).status_code == 204
    assert client.send("HEAD", address).status_code == 404
    assert client.patch(address, 0, b"x").status_code == 404


def test_a_body_of_unknown_length_is_stopped_at_the_uploads_end(client: Client):
    address = client.create(300_000)
    head = f"PATCH {address} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    head += "Content-Type: application/offset+octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = exchange(client.instance.port, head.encode() + chunked(*[bytes(100_000)] * 9))
    assert (answer.status, answer.problem["code"]) == (413, "too_large")
    assert client.offset(address) <= 300_000


def test_a_client_that_waits_for_leave_is_refused_without_being_asked_for_the_body(client: Client):
    address = client.create(10)
    head = f"PATCH {address} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 4\r\n"
    head += (
        "Content-Type: application/offset+octet-stream\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = exchange(client.instance.port, head.encode())
    assert not answer.continued
    assert (answer.status, answer.problem["offset_bytes"]) == (409, 0)


def test_pages_of_the_origins_that_may_upload_and_no_others(client: Client):
    asked = {"Access_Control_Request_Method": "PATCH", "Access_Control_Request_Headers": "tus-resumable"}
    preflight = client.send("OPTIONS", "/v1/uploads/" + "0" * 32, Origin=PAGE, **asked)
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Upload-Offset" in preflight.headers["Access-Control-Allow-Headers"]
    created = client.send("POST", Origin=PAGE, Upload_Length="3")
    assert created.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Location" in created.headers["Access-Control-Expose-Headers"]
    refused = client.patch(created.headers["Location"], 1, b"x", Origin=PAGE)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (409, PAGE)
    foreign = client.send("OPTIONS", Origin="https://other.example", **asked)
    assert "Access-Control-Allow-Origin" not in foreign.headers


# ---- what becomes of an upload


def test_an_upload_is_detected_like_a_posted_video(client: Client, instance: WebInstance):
    address = client.create(len(VIDEO), Upload_Metadata=metadata(filename="clip ü.mp4"))
    body = json.dumps({"upload": address.rpartition("/")[2]})

    def detect() -> requests.Response:
        headers = {"Content-Type": "application/json"}
        return requests.post(f"{instance.url}/v1/detections", data=body, headers=headers, timeout=SECONDS)

    unfinished = detect()
    assert (unfinished.status_code, unfinished.json()["code"]) == (409, "upload_unfinished")
    assert (unfinished.json()["offset_bytes"], unfinished.json()["length_bytes"]) == (0, len(VIDEO))
    client.patch(address, 0, VIDEO)
    answer = detect()
    assert (answer.status_code, answer.content) == (200, b"".join(document(4)))
    report = requests.get(f"{instance.url}/v1/jobs/{answer.headers['Framebox-Job']}", timeout=SECONDS).json()
    assert report["source"]["name"] == "clip ü.mp4"
    assert report["source"]["bytes"] == len(VIDEO)
    assert report["source"]["sha256"] == hashlib.sha256(VIDEO).hexdigest()
    again = detect()
    assert (again.status_code, again.json()["code"]) == (410, "upload_gone")
    assert again.json()["instance"] == f"/v1/jobs/{report['id']}"
    assert client.send("HEAD", address).headers["Framebox-Job"] == report["id"]
    assert client.send("DELETE", address).status_code == 204  # the job stays
    assert detect().status_code == 404
    assert result(instance, report["id"]) == b"".join(document(4))


def test_a_job_starts_with_the_last_byte_if_the_upload_says_so(client: Client, instance: WebInstance):
    address = client.create(len(VIDEO), Upload_Metadata=metadata(detect="model=other&stride=2"))
    assert "Framebox-Job" not in client.patch(address, 0, VIDEO[:5]).headers
    last = client.patch(address, 5, VIDEO[5:])
    job_id = last.headers["Framebox-Job"]
    assert f"</v1/jobs/{job_id}>" in last.headers["Link"]
    report = requests.get(f"{instance.url}/v1/jobs/{job_id}", timeout=SECONDS).json()
    assert report["options"] == {"model": "other", "stride": 2}
    head = client.send("HEAD", address)  # of a client that missed the answer
    assert (head.headers["Framebox-Job"], head.headers["Upload-Offset"]) == (job_id, str(len(VIDEO)))
    assert result(instance, job_id) == b"".join(document(4))


def test_an_upload_of_a_known_video_is_given_the_job_that_there_is(client: Client, instance: WebInstance):
    video = b'{"frames": 6}' + b" " * 1_000_000
    wanted = metadata(detect="attach=true")
    jobs = set()
    for cuts in ([0, len(video)], [0, 1, 500_000, len(video)], [0, 777_777, len(video)]):
        address = client.create(len(video), Upload_Metadata=wanted)
        for start, end in pairwise(cuts):
            answer = client.patch(address, start, video[start:end])
        jobs.add(answer.headers["Framebox-Job"])
        assert client.send("HEAD", address).headers["Framebox-Job"] in jobs
    headers = {"Content-Type": "video/mp4"}
    url = f"{instance.url}/v1/detections?attach=true"
    raw = requests.post(url, data=video, headers=headers, timeout=SECONDS)
    assert {raw.headers["Framebox-Job"]} == jobs


def test_parts_sent_in_parallel_are_joined_in_order(client: Client, instance: WebInstance):
    sizes = (3_000_001, 0, 2_500_000, 17)
    contents = [os.urandom(size) for size in sizes]
    parts = [client.create(size, Upload_Concat="partial") for size in sizes]
    final = {"Upload_Concat": f"final;{' '.join(instance.url + part for part in parts)}"}
    refused = client.send("POST", **final)
    assert (refused.status_code, refused.json()["code"]) == (409, "upload_unfinished")
    for part, data in zip(parts, contents, strict=True):
        if data:
            assert client.patch(part, 0, data).ok
    joined = client.send("POST", **final)
    assert joined.status_code == 201
    address = joined.headers["Location"]
    head = client.send("HEAD", address).headers
    assert head["Upload-Concat"] == final["Upload_Concat"]
    assert head["Upload-Offset"] == head["Upload-Length"] == str(sum(sizes))
    assert client.content(address) == b"".join(contents)
    assert client.patch(address, sum(sizes), b"").status_code == 403
    assert client.offset(parts[0]) == sizes[0]
    assert client.send("POST", **final).headers["Location"] == address  # of a client that missed the answer
    other = client.send("POST", Upload_Concat=f"final;{parts[0]}")
    assert (other.status_code, other.json()["instance"]) == (410, address)


# ---- broken connections, killed processes


def begin_patch(client: Client, address: str, offset: int, length: int, data: bytes) -> socket.socket:
    """Send a PATCH's head and some of its body, and leave it at that."""
    head = f"PATCH {address} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
    head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {length - offset}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", client.instance.port), timeout=SECONDS)
    connection.sendall(head.encode() + data)
    return connection


def written_bytes(client: Client, address: str) -> int:
    """How long the file is now; a HEAD would end the upload that is under way."""
    return len(client.content(address))


@pytest.mark.parametrize("how", ["HEAD", "PATCH", "DELETE"])
def test_a_client_that_comes_back_is_not_kept_out_by_its_own_dead_connection(client: Client, how: str):
    data = os.urandom(2_000_000)
    address = client.create(len(data))
    with begin_patch(client, address, 0, len(data), data[:1_000_000]):  # and then radio silence
        wait_until(lambda: written_bytes(client, address) > 700_000)
        if how == "DELETE":
            assert client.send("DELETE", address).status_code == 204
            return
        if how == "PATCH":  # not knowing where it stands
            assert client.patch(address, 5, data[5:]).status_code == 409
        offset = client.offset(address)
        assert 700_000 < offset <= 1_000_000
        assert client.patch(address, offset, data[offset:]).status_code == 204
    assert client.content(address) == data


def test_two_clients_at_one_upload_never_mix_their_bytes(client: Client):
    data = os.urandom(3_000_000)
    address = client.create(len(data))

    def go_on(seed: int) -> None:
        random_ = random.Random(seed)
        while (offset := client.offset(address)) < len(data):
            end = min(len(data), offset + random_.randrange(1, 1_500_000))
            client.patch(address, offset, data[offset:end])

    clients = [threading.Thread(target=go_on, args=(seed,), name=f"client {seed}") for seed in range(3)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
        assert not thread.is_alive()
    assert client.content(address) == data


def test_uploads_survive_clients_workers_and_nginx_that_die_at_any_offset(tmp_path: Path):
    random_ = random.Random(7)
    data = random_.randbytes(8_000_000)
    with running_instance(tmp_path, HTTP_WORKERS="2") as instance:
        client = Client(instance)
        address = client.create(len(data), Upload_Metadata=metadata(detect=""))
        for victim in ("client", "worker", "nginx", "worker", "client", "nginx"):
            before = _send_some(
                client, address, data, random_, then=functools.partial(_kill, instance, victim)
            )
            assert _offset_when_up(client, address) >= before
        offset = _offset_when_up(client, address)
        assert data.startswith(client.content(address))
        last = client.patch(address, offset, data[offset:])
        assert last.status_code == 204
        report = requests.get(
            f"{instance.url}/v1/jobs/{last.headers['Framebox-Job']}", timeout=SECONDS
        ).json()
        assert report["source"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert result(instance, report["id"]) == b"".join(document(3))


def _send_some(
    client: Client, address: str, data: bytes, random_: random.Random, *, then: Callable[[], None]
) -> int:
    """Send a random number of bytes, call `then` while more are expected; return how many surely count."""
    while True:
        offset = _offset_when_up(client, address)
        cut = min(len(data) - 1, offset + random_.randrange(1, 1_600_000))
        sure = max(offset, cut - 600_000)  # the rest may be on its way
        with begin_patch(client, address, offset, len(data), data[offset:cut]) as connection:
            wait_until(lambda: written_bytes(client, address) >= sure or _is_answered(connection))  # noqa: B023
            if not _is_answered(connection):  # as when the workers were not up again yet
                then()
                return sure


def _is_answered(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def _offset_when_up(client: Client, address: str) -> int:
    found: list[int] = []

    def ask() -> bool:
        with suppress(requests.RequestException, AssertionError):
            found.append(client.offset(address))
        return bool(found)

    wait_until(ask)
    return found[0]


def _kill(instance: WebInstance, victim: str) -> None:
    if victim == "worker":
        kill_all(psutil.Process(instance.programs["gunicorn"].pid).children())
    elif victim == "nginx":
        process = instance.programs.pop("nginx")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=SECONDS)
        wait_until(lambda: _is_free(instance.port))  # its workers had the socket too
        instance.start_nginx()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def test_no_more_uploads_than_there_may_be_and_none_without_room(tmp_path: Path):
    with running_instance(tmp_path, MAX_OPEN_UPLOADS="2", MIN_FREE_BYTES="0") as instance:
        client = Client(instance)
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        big = client.create(int(free * 0.6))  # its room is taken though not a byte has come
        refused = client.send("POST", Upload_Length=str(int(free * 0.6)))
        assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
        assert refused.json()["available_bytes"] < free * 0.5
        assert client.send("DELETE", big).status_code == 204
        addresses = [client.create(10) for _ in range(2)]
        many = client.send("POST", Upload_Length="10")
        assert (many.status_code, many.json()["code"], many.json()["limit"]) == (429, "too_many_uploads", 2)
        assert int(many.headers["Retry-After"]) > 0
        assert client.send("DELETE", addresses[0]).status_code == 204
        client.create(10)


def test_an_abandoned_upload_expires(tmp_path: Path):
    with running_instance(tmp_path, KEEP_UPLOAD_HOURS="1") as instance:
        client = Client(instance)
        address = client.create(10)
        folder = instance.folder.uploads / (address.rpartition("/")[2])
        for name in ("about.json", "video"):
            os.utime(folder / name, (time.time() - 7200,) * 2)  # much longer: clocks are corrected
        for method in ("HEAD", "PATCH", "DELETE"):
            assert client.send(method, address, Upload_Offset="0").status_code == 410
