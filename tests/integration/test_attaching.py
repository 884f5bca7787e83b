"""The same request again, through real servers: no second job, and for a known key no second upload."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from double_engine import document
from raw_http import RawAnswer, exchange, post_head
from waiting import wait_until
from web_instance import WebInstance, running_instance

VIDEO = {"Content-Type": "video/mp4"}
SECONDS = 20.0
ORDERS = b'{"frames": 4}'


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("attaching"), ATTACH="true") as instance:
        yield instance


@pytest.fixture
def key() -> str:
    return os.urandom(8).hex()


def post(instance: WebInstance, body: bytes, query: str = "", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{instance.url}/v1/detections{query}"
    return requests.post(url, data=body, headers=VIDEO | named, timeout=SECONDS)


def orders(hold: Path) -> bytes:
    return b'{"hold": "%s"}' % str(hold).encode()


def uploaded_bytes(instance: WebInstance) -> float:
    lines = requests.get(f"{instance.url}/metrics", timeout=SECONDS).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("framebox_upload_bytes_total"))


def head_with_key(key: str, length: int, *more: str) -> bytes:
    return post_head("", "video/mp4", f"Idempotency-Key: {key}", f"Content-Length: {length}", *more) + b"\r\n"


def is_document(answer: RawAnswer, frames: int) -> bool:
    return answer.status == 200 and answer.body == b"".join(document(frames))


def test_an_equal_video_is_answered_by_the_job_that_it_had(instance: WebInstance) -> None:
    first, second = (post(instance, ORDERS, "?stride=2") for _ in range(2))
    assert first.headers["Framebox-Job"] == second.headers["Framebox-Job"]
    assert first.content == second.content
    assert ("Framebox-Attached" in first.headers, second.headers["Framebox-Attached"]) == (False, "true")
    other = post(instance, ORDERS, "?stride=2&format=csv")
    assert other.headers["Framebox-Job"] == first.headers["Framebox-Job"]
    assert other.headers["Content-Type"].startswith("text/csv")


def test_a_new_run_can_be_asked_for(instance: WebInstance) -> None:
    first, second = (post(instance, ORDERS, "?attach=false") for _ in range(2))
    assert first.headers["Framebox-Job"] != second.headers["Framebox-Job"]
    assert first.content == second.content


def test_equal_videos_at_the_same_time_make_one_job(instance: WebInstance) -> None:
    body = os.urandom(300_000)
    with ThreadPoolExecutor(12) as threads:
        answers = [*threads.map(lambda _: post(instance, body), range(12))]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["Framebox-Job"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    wait_until(lambda: not [*instance.folder.incoming.iterdir()])
    known = {job["id"] for job in requests.get(f"{instance.url}/v1/jobs", timeout=SECONDS).json()["jobs"]}
    assert {folder.name for folder in instance.folder.jobs.iterdir()} == known


def test_a_known_key_is_answered_without_its_body(instance: WebInstance, key: str) -> None:
    body = b'{"frames": 5}' + b" " * 3_000_000
    first = post(instance, body, Idempotency_Key=key)
    received = uploaded_bytes(instance)
    for more in ((), ("Expect: 100-continue",)):
        answer = exchange(instance.port, head_with_key(key, len(body), *more))
        assert is_document(answer, 5), answer.received[:500]
        assert not answer.continued
        assert answer.headers["framebox-job"] == first.headers["Framebox-Job"]
        assert answer.headers["framebox-attached"] == "true"
    whole = post(instance, body, Idempotency_Key=f'"{key}"')
    assert whole.content == first.content
    assert uploaded_bytes(instance) == received


def test_a_body_of_unknown_length_with_a_known_key_is_answered_too(instance: WebInstance, key: str) -> None:
    first = post(instance, ORDERS, Idempotency_Key=key)
    again = requests.post(
        f"{instance.url}/v1/detections",
        data=iter([ORDERS]),
        headers=VIDEO | {"Idempotency-Key": key},
        timeout=SECONDS,
    )
    assert again.status_code == 200
    assert again.headers["Framebox-Job"] == first.headers["Framebox-Job"]


def test_a_small_body_with_a_known_key_leaves_the_connection_usable(instance: WebInstance, key: str) -> None:
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(
                f"{instance.url}/v1/detections", data=ORDERS, headers=VIDEO | {"Idempotency-Key": key}
            )
            assert answer.status_code == 200
            assert session.get(f"{instance.url}/livez").json() == {"alive": True}


def test_who_lost_the_connection_comes_back_with_the_key_and_waits(
    instance: WebInstance, key: str, tmp_path: Path
) -> None:
    hold = tmp_path / "go"
    body = orders(hold) + b" " * 2_000_000
    with socket.create_connection(("127.0.0.1", instance.port), timeout=SECONDS) as lost:
        lost.sendall(head_with_key(key, len(body)) + body)
        running = f"{instance.url}/v1/jobs?state=running"
        wait_until(lambda: requests.get(running, timeout=SECONDS).json()["jobs"])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(exchange, instance.port, head_with_key(key, len(body), "Prefer: wait=15"))
        report = exchange(instance.port, head_with_key(key, len(body), "Prefer: respond-async"))
        assert report.status == 202
        assert report.headers["preference-applied"] == "respond-async"
        assert not waiting.done()
        hold.touch()
        assert is_document(waiting.result(SECONDS), 3)


@pytest.mark.parametrize(
    ("body", "query", "differs"),
    [(ORDERS + b" ", "", "length"), (ORDERS, "?stride=3", "options")],
)
def test_a_key_of_another_request_is_refused(
    instance: WebInstance, key: str, body: bytes, query: str, differs: str
) -> None:
    assert post(instance, ORDERS, Idempotency_Key=key).status_code == 200
    answer = post(instance, body, query, Idempotency_Key=key)
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"], problem["differs"]) == (
        422,
        "idempotency_conflict",
        [differs],
    )


def repr_digest(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def test_a_stated_digest_tells_another_video_of_the_same_length_before_it_is_read(
    instance: WebInstance, key: str
) -> None:
    other = ORDERS[::-1]
    assert post(instance, ORDERS, Idempotency_Key=key).status_code == 200
    refused = post(instance, other, Idempotency_Key=key, Repr_Digest=repr_digest(other))
    assert (refused.status_code, refused.json()["differs"]) == (422, ["content"])
    same = post(instance, ORDERS, Idempotency_Key=key, Repr_Digest=repr_digest(ORDERS))
    assert (same.status_code, same.headers["Framebox-Attached"]) == (200, "true")


def test_two_requests_with_one_key_at_the_same_time_make_one_job(instance: WebInstance, key: str) -> None:
    """The second is under way before the first has its job; with another video it is refused."""
    head = head_with_key(key, len(ORDERS), "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", instance.port), timeout=SECONDS) as slow:
        slow.sendall(head)
        assert RawAnswer(slow.recv(65536)).continued
        slow.sendall(b"x")
        first = post(instance, ORDERS, Idempotency_Key=key)
        assert first.status_code == 200
        slow.sendall(b"y" * (len(ORDERS) - 1))
        refusal = RawAnswer(slow.recv(65536))
    assert (refusal.status, refusal.problem["code"]) == (422, "idempotency_conflict")
    wait_until(lambda: not [*instance.folder.incoming.iterdir()])


@pytest.mark.parametrize("wrong", ["", '""', "a b", "k" * 256, '"open', "ü"])
def test_what_is_no_key_is_refused(instance: WebInstance, wrong: str) -> None:
    request = head_with_key(wrong, len(ORDERS)) + ORDERS
    answer = exchange(instance.port, request)
    assert (answer.status, answer.problem["parameter"]) == (400, "Idempotency-Key")
