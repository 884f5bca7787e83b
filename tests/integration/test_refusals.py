"""Requests that are refused, through real servers: always a problem document, never a reset."""

from __future__ import annotations

import collections
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from raw_http import chunked, exchange, post_head
from waiting import wait_until
from web_instance import WebInstance, running_instance

LIMIT = 60_000_000
BIG = 50_000_000
REPEATS = 60
BODY_BUFFER_BYTES = 256 * 1024  # what nginx collects before it writes
VIDEO = {"Content-Type": "video/mp4"}
ASYNC = VIDEO | {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("refusals"), MAX_UPLOAD_BYTES=str(LIMIT)) as instance:
        yield instance


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "video.mp4"
    path.write_bytes(bytes(BIG))
    return path


@pytest.fixture(autouse=True)
def nothing_is_left(instance: WebInstance) -> Iterator[None]:
    """No refusal makes a job or leaves a byte."""
    yield
    wait_until(lambda: not [*instance.folder.incoming.iterdir()])
    wait_until(lambda: not [*instance.folder.bodies.glob("*/*")])
    assert not [*instance.folder.jobs.iterdir()]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (post_head() + b"\r\n", 400, "empty_body"),
        (post_head("", "video/mp4", "Content-Length: 0") + b"\r\n", 400, "empty_body"),
        (post_head("", "video/mp4", "Transfer-Encoding: chunked") + b"\r\n0\r\n\r\n", 400, "empty_body"),
        (post_head("?colour=red", "video/mp4", "Content-Length: 3") + b"\r\nabc", 400, "invalid_option"),
        (post_head("?min_score=2", "video/mp4", "Content-Length: 3") + b"\r\nabc", 400, "invalid_option"),
        (post_head("?model=birds", "video/mp4", "Content-Length: 3") + b"\r\nabc", 400, "invalid_option"),
        (post_head("", "text/plain", "Content-Length: 3") + b"\r\nabc", 415, "unsupported_media_type"),
        (post_head("", "application/x-www-form-urlencoded", "Content-Length: 3") + b"\r\nabc", 415,
         "unsupported_media_type"),
        (post_head("", "multipart/form-data", "Content-Length: 3") + b"\r\nabc", 400, "malformed_body"),
        (post_head("", "multipart/form-data; boundary=b", "Content-Length: 3") + b"\r\nabc", 400,
         "malformed_body"),
        (post_head("", "video/mp4", f"Content-Length: {LIMIT + 1}") + b"\r\n", 413, "too_large"),
        (post_head("", "video/mp4", "Transfer-Encoding: chunked") + b"\r\nzz\r\n", 400, "bad_request"),
        (post_head("", "video/mp4", "Content-Length: 3", "Transfer-Encoding: chunked") + b"\r\n", 400,
         "bad_request"),
        (post_head("", "video/mp4", "Transfer-Encoding: gzip") + b"\r\n", 400, "bad_request"),
        (post_head().replace(b"POST", b"PUT") + b"Content-Length: 9\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /v1/detections HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"GET /_internal/admit HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"GET /_admit HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"GET /_refused HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"GET /_results/x HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"GET /_problem/502 HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"\x16\x03\x01 no HTTP\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 400, "bad_request"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "address_too_long"),
        (b"PUT /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n", 413, "too_large"),
        (b"DELETE /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
    ],
)  # fmt: skip
def test_a_refusal_is_a_problem_document(instance: WebInstance, request_bytes: bytes, status: int, code: str):
    answer = exchange(instance.port, request_bytes)
    assert (answer.status, answer.problem["code"]) == (status, code)
    assert answer.problem["request_id"] == answer.headers["x-request-id"]
    assert answer.problem["detail"]
    if status == 405 and not request_bytes.startswith(b"TRACE"):
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("query", "content_type", "length", "status"),
    [
        ("?colour=red", "video/mp4", 1000, 400),
        ("", "text/plain", 1000, 415),
        ("", "video/mp4", LIMIT + 1, 413),
    ],
)
def test_a_client_that_waits_for_leave_is_refused_without_being_asked_for_the_body(
    instance: WebInstance, query: str, content_type: str, length: int, status: int
):
    head = post_head(query, content_type, f"Content-Length: {length}", "Expect: 100-continue")
    answer = exchange(instance.port, head + b"\r\n")
    assert not answer.continued
    assert answer.status == status
    assert answer.problem["status"] == status


def test_the_limit_is_told(instance: WebInstance):
    head = post_head("", "video/mp4", f"Content-Length: {LIMIT + 1}")
    assert exchange(instance.port, head + b"\r\n").problem["limit_bytes"] == LIMIT


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]])
def test_a_body_of_unknown_length_is_stopped_at_the_limit(instance: WebInstance, expect: list[str]):
    head = post_head("", "video/mp4", "Transfer-Encoding: chunked", *expect)
    answer = exchange(instance.port, head + b"\r\n" + chunked(*[bytes(1_000_000)] * 61))
    assert (answer.status, answer.problem["code"]) == (413, "too_large")


@pytest.mark.parametrize("headers", [[], ["-H", "Expect:"]], ids=["expect", "no expect"])
def test_curl_sees_each_of_many_refusals_of_a_large_upload(
    instance: WebInstance, big_file: Path, headers: list[str]
):
    seen = collections.Counter(
        _curl(instance, "-T", str(big_file), "-X", "POST", *headers, query="?colour=red")
        for _ in range(REPEATS)
    )
    assert seen == {("400", 0): REPEATS}


def test_curl_sees_each_of_many_refusals_in_the_middle_of_a_form(instance: WebInstance, big_file: Path):
    seen = collections.Counter(
        _curl(instance, "-H", "Expect:", "-F", f"photo=@{big_file}", query="") for _ in range(REPEATS)
    )
    assert seen == {("400", 0): REPEATS}


def test_a_library_that_sends_all_before_it_reads_sees_the_refusal_too(instance: WebInstance, big_file: Path):
    seen = collections.Counter[int]()
    for _ in range(20):
        with big_file.open("rb") as file:
            seen[
                requests.post(f"{instance.url}/v1/detections?colour=red", data=file, timeout=30).status_code
            ] += 1
    assert seen == {400: 20}


@pytest.mark.parametrize("sent_bytes", [0, 3, 2_000_000])
def test_a_client_that_goes_midway_leaves_nothing(instance: WebInstance, sent_bytes: int):
    head = post_head("", "video/mp4", f"Content-Length: {BIG}")
    with _connected(instance.port, head + b"\r\n" + bytes(sent_bytes)):
        if sent_bytes > BODY_BUFFER_BYTES:
            wait_until(lambda: [*instance.folder.bodies.glob("*/*")])
    wait_until(lambda: not [*instance.folder.bodies.glob("*/*")])


def test_a_form_that_breaks_off_leaves_nothing(instance: WebInstance):
    before = _outcome(instance, "incomplete_body")
    head = post_head("", "multipart/form-data; boundary=b", f"Content-Length: {BIG}")
    part = b'--b\r\nContent-Disposition: form-data; name="video"\r\n\r\n' + bytes(2_000_000)
    exchange(instance.port, head + b"\r\n" + part, half_close=True)
    wait_until(lambda: _outcome(instance, "incomplete_body") > before)


def test_a_chunked_body_that_breaks_off_leaves_nothing(instance: WebInstance):
    before = _outcome(instance, "incomplete_body")
    head = post_head("", "video/mp4", "Transfer-Encoding: chunked")
    exchange(instance.port, head + b"\r\n" + chunked(bytes(2_000_000))[:-5], half_close=True)
    wait_until(lambda: _outcome(instance, "incomplete_body") > before)


def test_forged_internal_headers_change_nothing(instance: WebInstance):
    forged = ["Framebox-Upload-Uri: /", "Framebox-Upload-Length: 1", "Framebox-Upload-Method: GET"]
    head = post_head("?colour=red", "video/mp4", "Content-Length: 3", *forged)
    assert exchange(instance.port, head + b"\r\nabc").problem["code"] == "invalid_option"


def test_two_uploads_are_not_promised_the_last_space(tmp_path: Path):
    """With room for one and a half, the second is refused while the first is under way."""
    with running_instance(tmp_path, MIN_FREE_BYTES="0") as instance:
        available = requests.get(f"{instance.url}/readyz", timeout=10).json()["checks"]["disk"][
            "available_bytes"
        ]
        size = int(available * 0.6)
        head = post_head("", "video/mp4", f"Content-Length: {size}", "Expect: 100-continue")
        with _connected(instance.port, head + b"\r\n") as first:
            assert first.recv(25).startswith(b"HTTP/1.1 100")
            answer = exchange(instance.port, head + b"\r\n")
            assert (answer.status, answer.continued) == (507, False)
            assert answer.problem["needed_bytes"] == size
            assert answer.problem["available_bytes"] < size
        assert requests.post(f"{instance.url}/v1/detections", data=b"{}", headers=VIDEO, timeout=30).ok


def test_a_full_queue_is_told_with_the_time_to_come_back(tmp_path: Path):
    with running_instance(tmp_path, MAX_ACTIVE_JOBS="2") as instance:
        url, hold = f"{instance.url}/v1/detections", b'{"hold":"%s"}' % str(tmp_path / "go").encode()
        for _ in range(2):
            assert requests.post(url, data=hold, headers=ASYNC, timeout=30).status_code == 202
        refused = requests.post(url, data=b"{}", headers=ASYNC, timeout=30)
        assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (
            429,
            "too_many_jobs",
            2,
        )
        assert int(refused.headers["Retry-After"]) > 0
        (tmp_path / "go").touch()
        wait_until(lambda: requests.post(url, data=b"{}", headers=ASYNC, timeout=30).status_code == 202)


def test_more_callers_than_may_wait_get_their_job_s_address_at_once(tmp_path: Path):
    """Threads are few, and some must stay free: see app/web/waiting.py. No upload is lost for that."""
    with running_instance(tmp_path, HTTP_THREADS="8", HTTP_WORKERS="1") as instance, ExitStack() as stack:
        hold = b'{"hold":"%s"}' % str(tmp_path / "go").encode()
        request = post_head("", "video/mp4", f"Content-Length: {len(hold)}") + b"\r\n" + hold
        waiting = [stack.enter_context(_connected(instance.port, request)) for _ in range(2)]
        wait_until(lambda: len(requests.get(f"{instance.url}/v1/jobs", timeout=10).json()["jobs"]) == 2)
        for _ in range(10):
            told = exchange(instance.port, request)
            assert told.status == 202
            assert told.headers["location"] == f"/v1/jobs/{told.headers['framebox-job']}"
        assert requests.get(f"{instance.url}/readyz", timeout=10).status_code == 200
        (tmp_path / "go").touch()
        assert [connection.recv(12) for connection in waiting] == [b"HTTP/1.1 200"] * 2
        wait_until(lambda: exchange(instance.port, request).status == 200)


def test_more_uploads_than_the_application_reads_are_told_and_the_rest_of_the_service_answers(tmp_path: Path):
    with running_instance(tmp_path, HTTP_THREADS="8", HTTP_WORKERS="1") as instance, ExitStack() as stack:
        head = post_head("", "multipart/form-data; boundary=b", "Content-Length: 1000") + b"\r\n"
        for _ in range(4):
            stack.enter_context(_connected(instance.port, head))
        wait_until(lambda: len([*instance.folder.incoming.iterdir()]) == 4)
        refused = exchange(instance.port, head)
        assert (refused.status, refused.problem["code"]) == (503, "busy")
        assert int(refused.headers["retry-after"]) > 0
        assert requests.get(f"{instance.url}/readyz", timeout=10).status_code == 200
        raw = requests.post(f"{instance.url}/v1/detections", data=b"{}", headers=ASYNC, timeout=30)
        assert raw.status_code == 202, "nginx itself writes raw bodies"


def test_a_client_that_stops_sending_is_cut_off_and_leaves_nothing(tmp_path: Path):
    def shorten(text: str) -> str:
        assert "client_body_timeout 60s;" in text
        return text.replace("client_body_timeout 60s;", "client_body_timeout 1s;")

    with running_instance(tmp_path, shorten) as instance:
        answer = exchange(instance.port, post_head("", "video/mp4", "Content-Length: 100") + b"\r\nabc")
        assert not answer.received  # nginx closes such a connection without a word
        wait_until(lambda: not [*instance.folder.incoming.iterdir()])


def test_without_the_application_nginx_tells_so(instance: WebInstance):
    instance.stop("gunicorn")
    for answer in (
        exchange(instance.port, post_head("", "video/mp4", "Content-Length: 3") + b"\r\nabc"),
        exchange(instance.port, b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n"),
    ):
        assert (answer.status, answer.problem["code"]) == (502, "bad_gateway")
        assert int(answer.headers["retry-after"]) > 0
    instance.start_gunicorn()
    instance.wait_until_ready()


def _connected(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def _outcome(instance: WebInstance, outcome: str) -> float:
    text = requests.get(f"{instance.url}/metrics", timeout=10).text
    label = f'framebox_uploads_total{{outcome="{outcome}"}} '
    return sum(float(line.removeprefix(label)) for line in text.splitlines() if line.startswith(label))


def _curl(instance: WebInstance, *arguments: str, query: str) -> tuple[str, int]:
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "30", *arguments]
    done = subprocess.run(
        [*command, f"{instance.url}/v1/detections{query}"], capture_output=True, text=True, check=False
    )
    return done.stdout, done.returncode
