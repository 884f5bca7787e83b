"""Raw bodies that nginx writes to disk by itself: nobody can name another's, and nothing is left behind."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from double_engine import document
from raw_http import RawAnswer, exchange, post_head
from waiting import wait_until
from web_instance import WebInstance, running_instance

from app.storage.space import free_bytes

SECONDS = 30.0
MIB = 1024 * 1024
DISK_BYTES = 64 * MIB
REQUEST = "ab" + "0" * 30
VIDEO = {"Content-Type": "video/mp4"}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("spooling")) as instance:
        yield instance


def connected(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    connection.sendall(data)
    return connection


def half_sent(instance: WebInstance, size: int, *headers: str) -> socket.socket:
    """An upload of `size` bytes, half of which nginx has written to disk."""
    head = post_head("", "video/mp4", f"Content-Length: {size}", "Prefer: respond-async", *headers)
    before = set(files(instance))
    connection = connected(instance.port, head + b"\r\n" + bytes(size // 2))
    wait_until(lambda: any(path.stat().st_size >= size // 2 - MIB for path in files(instance) - before))
    return connection


def files(instance: WebInstance) -> set[Path]:
    return set(instance.folder.bodies.glob(f"*/{'?' * 10}"))  # without the follower's notes


def is_document(answer: RawAnswer, frames: int) -> bool:
    return answer.status == 200 and answer.body == b"".join(document(frames))


def answer_of(connection: socket.socket) -> RawAnswer:
    received = b""
    while not received.partition(b"\r\n\r\n")[2]:
        piece = connection.recv(65536)
        if not piece:
            break
        received += piece
    return RawAnswer(received)


class UnixConnection(http.client.HTTPConnection):
    """To gunicorn itself, past nginx."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def ask_gunicorn(instance: WebInstance, named: str, length: int) -> tuple[int, bytes]:
    """Say, as nginx would, that the body of REQUEST lies at `named`."""
    headers = VIDEO | {
        "X-Request-ID": REQUEST,
        "Prefer": "respond-async",
        "Framebox-Upload-Length": str(length),
        "Framebox-Body-File": named,
    }
    with closing(UnixConnection(instance.folder.web_socket)) as connection:
        connection.request("POST", "/_internal/body", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


# ---- whose body it is


@pytest.mark.parametrize(
    "content_type",
    ["video/mp4", "VIDEO/MP4", "video/mp4; codecs=avc1", "application/octet-stream",
     "Application/Octet-Stream;a=b", "video/x; multipart/form-data; boundary=b"],
)  # fmt: skip
def test_a_raw_body_is_written_by_nginx_alone(instance: WebInstance, content_type: str):
    def written_by_gunicorn() -> int:
        master = psutil.Process(instance.programs["gunicorn"].pid)
        return sum(worker.io_counters().write_chars for worker in master.children())

    orders = b'{"frames": 2}' + b" " * 4_000_000
    before = written_by_gunicorn()
    answer = requests.post(
        f"{instance.url}/v1/detections?model=other&stride=2",
        data=orders,
        headers={"Content-Type": content_type, "Prefer": "respond-async"},
        timeout=SECONDS,
    )
    assert answer.status_code == 202
    assert answer.json()["options"] == {"model": "other", "stride": 2}
    assert written_by_gunicorn() - before < 1_000_000


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data; boundary=b", "Multipart/Form-Data; boundary=b", 'multipart/form-data;boundary="b"',
     "multipart/form-data ; a=b;boundary=b"],
)  # fmt: skip
def test_a_form_is_no_raw_body_however_its_type_is_written(instance: WebInstance, content_type: str):
    body = b'--b\r\nContent-Disposition: form-data; name="video"\r\n\r\n{"frames": 2}\r\n--b--\r\n'
    head = post_head("", content_type, f"Content-Length: {len(body)}")
    assert is_document(exchange(instance.port, head + b"\r\n" + body), 2)


@pytest.mark.parametrize("content_type", ["video/mp4", "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("chunked", [False, True])
def test_no_client_can_name_a_file(instance: WebInstance, tmp_path: Path, content_type: str, chunked: bool):
    """Neither one of the server's nor another upload's: the body is what came with the request."""
    victim = tmp_path / "victim"
    victim.write_bytes(b'{"frames": 9}')
    names = ["Framebox-Body-File", "framebox-body-file", "Framebox_Body_File"]
    with half_sent(instance, 4 * MIB) as other:
        for path in (victim, *files(instance)):
            forged = [f"{name}: {path}" for name in names] + ["Framebox-Upload-Length: 13"]
            body = b'{"frames": 2}'
            if content_type.startswith("multipart"):
                body = (
                    b'--b\r\nContent-Disposition: form-data; name="video"\r\n\r\n' + body + b"\r\n--b--\r\n"
                )
            length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
            sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
            answer = exchange(instance.port, post_head("", content_type, length, *forged) + b"\r\n" + sent)
            assert is_document(answer, 2)
        other.sendall(bytes(2 * MIB))
        assert answer_of(other).status == 202
    assert victim.read_bytes() == b'{"frames": 9}'


@pytest.mark.parametrize(
    "address",
    ["/_internal/body", "/_body/ab", "/_internal/unspooled", "//_internal/body", "/x/../_internal/body",
     "/%5finternal/body", "/_internal/../_internal/body", "/_body/"],
)  # fmt: skip
def test_the_addresses_between_nginx_and_the_application_are_nobodys(instance: WebInstance, address: str):
    for method in (b"GET", b"POST"):
        request = method + b" " + address.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        answer = exchange(instance.port, request)
        assert (answer.status, answer.problem["code"]) == (404, "not_found")


def test_at_the_socket_only_a_whole_body_of_the_request_is_taken(instance: WebInstance, tmp_path: Path):
    folder, other = instance.folder.bodies / "ab", instance.folder.bodies / "cd"
    body, victim = folder / "0000000001", tmp_path / "victim"
    body.write_bytes(b'{"frames": 2}')
    victim.write_bytes(b'{"frames": 2}')
    (other / "0000000001").write_bytes(b'{"frames": 2}')
    (folder / "0000000002").symlink_to(victim)
    os.link(victim, folder / "0000000003")
    (folder / "0000000004").mkdir()
    jobs = len([*instance.folder.jobs.iterdir()])
    for named in (
        *(str(folder / f"000000000{number}") for number in (2, 3, 4)),
        str(other / "0000000001"),
        str(victim),
        f"{folder}/../cd/0000000001",
        "",
    ):
        assert ask_gunicorn(instance, named, 13)[0] == 500
    assert ask_gunicorn(instance, str(body), 14)[0] == 500
    assert ask_gunicorn(instance, str(folder / "0000000009"), 13)[0] == 400
    assert len([*instance.folder.jobs.iterdir()]) == jobs
    assert not [*instance.folder.incoming.iterdir()]
    assert ask_gunicorn(instance, str(body), 13)[0] == 202
    assert ask_gunicorn(instance, str(body), 13)[0] == 400, "it is taken already"
    assert (victim.read_bytes(), (other / "0000000001").read_bytes()) == (b'{"frames": 2}',) * 2
    for number in (2, 3):
        (folder / f"000000000{number}").unlink()
    (folder / "0000000004").rmdir()
    (other / "0000000001").unlink()


def test_only_the_services_own_user_can_reach_the_application(instance: WebInstance):
    assert stat.S_IMODE(instance.folder.web_socket.stat().st_mode) & 0o077 == 0
    for folder in (instance.folder.run, instance.folder.bodies, instance.folder.bodies / "ab"):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0


# ---- what is left behind


def test_a_client_that_goes_leaves_nothing_and_its_space_is_free(instance: WebInstance):
    ledger = instance.folder.space_ledger
    with half_sent(instance, 8 * MIB):
        assert files(instance)
    wait_until(lambda: not files(instance))
    end_time_limits(ledger)
    assert requests.get(f"{instance.url}/readyz", timeout=SECONDS).ok  # it asks what is available
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM space_promises").fetchone() == (0,)


def end_time_limits(ledger: Path) -> None:
    """As if the time had passed in which a promise needs no file to hold."""
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("UPDATE space_promises SET expires_at = 0")


def test_a_killed_nginx_leaves_bodies_that_are_cleared_away_and_none_under_way_is(tmp_path: Path):
    with running_instance(tmp_path) as instance:
        with half_sent(instance, 4 * MIB):
            (left,) = files(instance)
            nginx = instance.programs.pop("nginx")
            os.killpg(nginx.pid, signal.SIGKILL)
            nginx.wait(timeout=SECONDS)
            wait_until(lambda: not is_open(left))
        instance.start_nginx()
        instance.wait_until_ready()
        with half_sent(instance, 4 * MIB) as upload:
            (under_way,) = files(instance) - {left}
            for path in (left, under_way):
                with suppress(FileNotFoundError):  # on a busy machine, the follower has cleared it away
                    os.utime(path, (0, 0))
            instance.stop("gunicorn")
            instance.start_gunicorn()
            instance.wait_until_ready()
            assert files(instance) == {under_way}
            upload.sendall(bytes(2 * MIB))
            assert answer_of(upload).status == 202
        assert not files(instance)


def test_an_nginx_that_starts_clears_away_what_an_earlier_one_left(tmp_path: Path):
    with running_instance(tmp_path) as instance:
        with half_sent(instance, 4 * MIB):
            (left,) = files(instance)
            nginx = instance.programs.pop("nginx")
            os.killpg(nginx.pid, signal.SIGKILL)
            nginx.wait(timeout=SECONDS)
        assert left.exists()
        instance.start("nginx", [sys.executable, "-m", "app", "nginx", "--replace"])
        instance.wait_until_ready()
        assert not files(instance)
        assert requests.post(f"{instance.url}/v1/detections", data=b"{}", headers=VIDEO, timeout=SECONDS).ok


def is_open(path: Path) -> bool:
    links = (link for process in Path("/proc").glob("[0-9]*") for link in _links(process / "fd"))
    return any(link == str(path) for link in links)


def _links(folder: Path) -> Iterator[str]:
    try:
        for link in folder.iterdir():
            yield str(link.readlink())
    except OSError:
        return


# ---- room on the disk


def test_two_uploads_are_not_promised_the_last_space_however_slow_the_first_is(tmp_path: Path):
    with running_instance(tmp_path, MIN_FREE_BYTES="0") as instance:
        size = int(free_bytes(instance.data) * 0.6)
        head = post_head("", "video/mp4", f"Content-Length: {size}")
        with connected(instance.port, head + b"\r\n" + bytes(MIB)):
            wait_until(lambda: files(instance))
            end_time_limits(instance.folder.space_ledger)
            refused = exchange(instance.port, head + b"\r\n")
            assert (refused.status, refused.problem["code"]) == (507, "insufficient_storage")
            assert refused.problem["available_bytes"] < size
        wait_until(lambda: not files(instance))
        with connected(instance.port, head + b"Expect: 100-continue\r\n\r\n") as admitted:
            assert RawAnswer(admitted.recv(65536)).continued


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose ``data`` is a file system of its own. Skips where this user may not mount one."""
    data = tmp_path / "data"
    data.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(data)]
    mounted = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if mounted.returncode != 0:
        reason = f"cannot mount a small file system: {mounted.stderr.strip()}"
        if os.environ.get("FRAMEBOX_REQUIRE_NAMESPACES", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(data)], timeout=30, check=True)


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while os.write(file.fileno(), bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def test_a_disk_that_runs_full_under_a_body_is_told_with_numbers_and_nothing_is_left(small_disk: Path):
    size = 20 * MIB
    with running_instance(small_disk, MIN_FREE_BYTES="0", KEEP_FREE_BYTES="0") as instance:
        with half_sent(instance, size) as upload:
            filler = instance.data / "filler"
            _fill(filler)
            with suppress(BrokenPipeError, ConnectionResetError):  # then what nginx said is there to be read
                upload.sendall(bytes(size - size // 2))
            answer = answer_of(upload)
            problem: dict[str, Any] = answer.problem
            assert (answer.status, problem["code"]) == (507, "insufficient_storage")
            assert (problem["needed_bytes"], problem["available_bytes"] < size) == (size, True)
        wait_until(lambda: not files(instance))
        assert not [*instance.folder.incoming.iterdir(), *instance.folder.jobs.iterdir()]
        filler.unlink()
        headers = VIDEO | {"Prefer": "respond-async"}  # the double engine has not survived the full disk
        answered = requests.post(
            f"{instance.url}/v1/detections", data=b"{}", headers=headers, timeout=SECONDS
        )
        assert answered.status_code == 202


# ---- digests that the client sends


def _digest(name: str, body: bytes) -> str:
    label = {"sha256": "sha-256", "sha512": "sha-512"}[name]
    return f"{label}=:{base64.b64encode(hashlib.new(name, body).digest()).decode()}:"


def _form(video: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="video"\r\n\r\n' + video + b"\r\n--b--\r\n"


@pytest.fixture(params=["raw", "chunked", "form"])
def post(instance: WebInstance, request: pytest.FixtureRequest) -> Callable[..., requests.Response]:
    """Post a body in one of three ways; `digested` says of what the digest is to be."""

    def post(video: bytes, header: str, *algorithms: str, digested: bytes | None = None) -> requests.Response:
        is_form = request.param == "form"
        body = _form(video) if is_form else video
        content_type = "multipart/form-data; boundary=b" if is_form else "video/mp4"
        digests = ", ".join(_digest(name, body if digested is None else digested) for name in algorithms)
        return requests.post(
            f"{instance.url}/v1/detections",
            data=iter([body[:7], body[7:]]) if request.param == "chunked" else body,
            headers={"Content-Type": content_type, header: digests},
            timeout=SECONDS,
        )

    return post


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
@pytest.mark.parametrize("algorithms", [("sha256",), ("sha512",), ("sha512", "sha256")])
def test_a_body_with_its_digest_is_taken(
    instance: WebInstance, post: Callable[..., requests.Response], header: str, algorithms: tuple[str, ...]
):
    video = b'{"frames": 2}  '
    answer = post(video, header, *algorithms)
    assert (answer.status_code, answer.content) == (200, b"".join(document(2)))
    report = requests.get(f"{instance.url}/v1/jobs/{answer.headers['Framebox-Job']}", timeout=SECONDS).json()
    assert report["source"]["sha256"] == hashlib.sha256(video).hexdigest()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_body_with_another_digest_is_refused_and_makes_no_job(
    instance: WebInstance, post: Callable[..., requests.Response], algorithm: str
):
    before = {path.name for path in instance.folder.jobs.iterdir()}
    answer = post(b'{"frames": 2}', "Repr-Digest", algorithm, digested=b"another")
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["header"]) == (400, "digest_mismatch", "Repr-Digest")
    assert {path.name for path in instance.folder.jobs.iterdir()} == before
    assert not [*instance.folder.incoming.iterdir()]
    wait_until(lambda: not files(instance))


def test_what_is_no_digest_is_refused_before_the_body(instance: WebInstance):
    head = post_head(
        "", "video/mp4", "Content-Length: 1000", "Expect: 100-continue", "Repr-Digest: sha-256=abc"
    )
    answer = exchange(instance.port, head + b"\r\n")
    assert (answer.status, answer.continued) == (400, False)
    assert (answer.problem["code"], answer.problem["parameter"]) == ("invalid_option", "Repr-Digest")
