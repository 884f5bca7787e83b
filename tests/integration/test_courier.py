"""URL sources and callbacks through the real programs: web side, courier, and a stand-in for the engine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import trustme
from double_engine import document
from failpoints import OF_THE_COURIER, points_in_source
from origin import Exchange, Origin, Video, running_origin
from standardwebhooks import Webhook
from waiting import wait_until
from web_instance import WebInstance, running_instance

SECONDS = 30.0
SIGNING = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
TOKEN = "X-Amz-Signature=5ecre7"  # noqa: S105 - for nothing
ORDERS = b'{"frames": 4}' + b" " * 3000
# The places of app/failpoints.py that the courier passes.
FETCHING = ("chunk_received", "chunk_durable", "fetch_linked", "fetch_completed")
DELIVERING = ("delivery_begun", "delivery_answered")


class Instance(WebInstance):
    """With a courier, and a folder of armed places to die at."""

    def start_courier(self) -> None:
        self.start("courier", [sys.executable, "-m", "app", "courier"])

    def kill_courier(self) -> None:
        self.stop("courier", signal.SIGKILL)

    def wait_until_courier_died(self) -> None:
        process = self.programs.pop("courier")
        assert process.wait(SECONDS) == -signal.SIGKILL


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[WebInstance]:
    folder = tmp_path_factory.mktemp("courier")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "armed").mkdir()
    settings = {
        "ALLOWED_HOSTS": "127.0.0.1",
        "CA_FILE": str(folder / "ca.pem"),
        "WEBHOOK_SECRET": SIGNING,
        "FAILPOINTS": str(folder / "armed"),
    }
    with running_instance(folder, **settings) as instance:
        instance.__class__ = Instance
        instance.start_courier()  # type: ignore[attr-defined]
        yield instance


@pytest.fixture
def courier(instance: Instance) -> Iterator[Instance]:
    yield instance
    if "courier" not in instance.programs:
        instance.start_courier()


@pytest.fixture
def origin(authority: trustme.CA) -> Iterator[Origin]:
    with running_origin(authority, "127.0.0.1") as origin:
        origin.usual = Video(ORDERS).serve
        yield origin


@pytest.fixture
def receiver() -> Iterator[Origin]:
    with running_origin() as receiver:
        receiver.usual = lambda exchange: exchange.send(204)
        yield receiver


def post(instance: WebInstance, source: object, query: str = "", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(f"{instance.url}/v1/detections{query}", json=source, headers=named, timeout=SECONDS)


def upload(instance: WebInstance, **options: str) -> requests.Response:
    headers, url = {"Content-Type": "video/mp4"}, f"{instance.url}/v1/detections"
    return requests.post(url, params=options, data=ORDERS, headers=headers, timeout=SECONDS)


def post_async(instance: WebInstance, source: object, query: str = "") -> str:
    answer = post(instance, source, query, Prefer="respond-async")
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def result(instance: WebInstance, job_id: str) -> bytes:
    return requests.get(f"{instance.url}/v1/jobs/{job_id}/result", timeout=SECONDS).content


def stored(instance: WebInstance) -> str:
    """All that the database holds, as text."""
    with sqlite3.connect(instance.folder.database) as connection:
        return "\n".join(connection.iterdump())


def test_a_video_is_fetched_and_its_answer_given_in_one_request(
    courier: Instance, origin: Origin, receiver: Origin
) -> None:
    answer = post(courier, {"url": f"{origin.url}/b/v.mp4?{TOKEN}"}, f"?callback={receiver.url}/done%3Fk%3D1")
    assert (answer.status_code, answer.content) == (200, b"".join(document(4)))
    job_id = answer.headers["Framebox-Job"]
    receiver.wait_for_requests(1)
    wait_until(lambda: courier.report(job_id)["callbacks"][0]["state"] == "delivered")
    told = courier.report(job_id)
    assert told["source"] == {
        "kind": "url",
        "name": "v.mp4",
        "address": f"{origin.url}/b/v.mp4",
        "bytes": len(ORDERS),
        "sha256": hashlib.sha256(ORDERS).hexdigest(),
        "received_bytes": len(ORDERS),
    }
    (callback,) = told["callbacks"]
    assert (callback["address"], callback["attempts"], callback["last_status"]) == (
        f"{receiver.url}/done",
        1,
        204,
    )
    (request,) = receiver.requests
    assert request.path == "/done?k=1"
    delivered = Webhook(SIGNING).verify(request.body, request.headers)
    assert delivered == {name: value for name, value in told.items() if name != "callbacks"}


def test_the_secrets_of_a_url_are_nowhere_once_it_is_fetched(courier: Instance, origin: Origin) -> None:
    post(courier, {"url": f"{origin.url}/v?{TOKEN}"})
    origin.usual = lambda exchange: exchange.send(403)
    post(courier, {"url": f"{origin.url}/v?{TOKEN}"})
    assert TOKEN not in stored(courier)
    for program in ("courier", "gunicorn", "nginx", "engine"):
        assert TOKEN not in courier.log(program)
    for name in ("/v1/jobs", "/metrics"):
        assert TOKEN not in requests.get(courier.url + name, timeout=SECONDS).text


def test_a_job_waits_for_its_video_and_tells_how_much_is_there(courier: Instance, origin: Origin) -> None:
    go_on = threading.Event()

    def halting(exchange: Exchange) -> None:
        exchange.send_head(200, Content_Length=str(len(ORDERS)))
        exchange.write(ORDERS[:1000])
        deadline = time.monotonic() + SECONDS
        while not go_on.wait(0.5) and time.monotonic() < deadline:
            exchange.write(b"")
        exchange.write(ORDERS[1000:])

    origin.usual = halting
    try:
        job_id = post_async(courier, {"url": f"{origin.url}/v"})
        wait_until(lambda: courier.report(job_id)["source"]["bytes"] == len(ORDERS))
        told = courier.report(job_id)
        assert (told["state"], told["waiting"], told["started_at"]) == ("queued", "source", None)
        assert told["source"]["sha256"] is None
        assert told["source"]["received_bytes"] < len(ORDERS)
    finally:
        go_on.set()
    assert courier.end_of(job_id)["state"] == "succeeded"


def test_other_jobs_do_not_wait_for_somebody_elses_video(courier: Instance, origin: Origin) -> None:
    go_on = threading.Event()

    def halting(_: Exchange) -> None:
        go_on.wait(SECONDS)

    origin.usual = halting
    job_id = post_async(courier, {"url": f"{origin.url}/v"})
    try:
        sent = requests.post(
            f"{courier.url}/v1/detections",
            data=ORDERS,
            headers={"Content-Type": "video/mp4"},
            timeout=SECONDS,
        )
        assert sent.status_code == 200
        cancelled = requests.delete(f"{courier.url}/v1/jobs/{job_id}", timeout=SECONDS)
        assert cancelled.json()["state"] == "cancelled"
    finally:
        go_on.set()
    wait_until(lambda: not [*courier.folder.job(job_id).iterdir()])


def test_a_key_is_for_the_whole_url(courier: Instance, origin: Origin) -> None:
    key, source = os.urandom(8).hex(), {"url": f"{origin.url}/v?{TOKEN}"}
    first = post(courier, source, Idempotency_Key=key)
    again = post(courier, source, Idempotency_Key=key)
    assert again.headers["Framebox-Job"] == first.headers["Framebox-Job"]
    assert again.content == first.content
    other = post(courier, {"url": f"{origin.url}/v?{TOKEN}8"}, Idempotency_Key=key)
    assert (other.status_code, other.json()["differs"]) == (422, ["content"])
    assert len(origin.requests) == 1


def test_a_failure_of_the_source_is_the_jobs(courier: Instance, origin: Origin, receiver: Origin) -> None:
    origin.usual = lambda exchange: exchange.send(404)
    answer = post(courier, {"url": f"{origin.url}/v?{TOKEN}"}, f"?callback={receiver.url}/")
    assert (answer.status_code, answer.json()["code"]) == (422, "source_refused")
    assert answer.json()["source_status"] == 404
    receiver.wait_for_requests(1)
    assert json.loads(receiver.requests[0].body)["problem"]["code"] == "source_refused"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.org/v", "is not https"),
        ("https://10.0.0.1/v", "private or special"),
        ("https://[::ffff:169.254.169.254]/v", "private or special"),
        ("https://user:5ecre7@example.org/v", "user name"),
        ("https://example.org:25/v", "port 25"),
        ("ftp://example.org/v", "is not https"),
        ("nonsense", "no host"),
    ],
)
def test_an_address_that_nobody_may_ask_is_refused_before_there_is_a_job(
    courier: Instance, url: str, told: str
) -> None:
    before = {*courier.folder.jobs.iterdir()}
    answers = {"invalid_source": post(courier, {"url": url}), "invalid_option": upload(courier, callback=url)}
    for code, answer in answers.items():
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert told in answer.json()["detail"]
        assert "5ecre7" not in answer.text
    assert {*courier.folder.jobs.iterdir()} == before


def test_the_probes_tell_of_the_courier(courier: Instance) -> None:
    ready = requests.get(f"{courier.url}/readyz", timeout=SECONDS).json()
    wait_until(
        lambda: requests.get(f"{courier.url}/readyz", timeout=SECONDS).json()["checks"]["courier"]["ready"]
    )
    assert ready["checks"]["courier"].keys() == {"ready", "heartbeat_age_seconds"}
    metrics = requests.get(f"{courier.url}/metrics", timeout=SECONDS).text
    assert "framebox_courier_ready 1.0" in metrics


@pytest.mark.parametrize("point", FETCHING)
def test_a_kill_at_a_step_of_a_fetch_changes_nothing(
    courier: Instance, origin: Origin, receiver: Origin, point: str
) -> None:
    mark = Path(courier.settings["FAILPOINTS"]) / point
    mark.touch()
    job_id = post_async(courier, {"url": f"{origin.url}/v"}, f"?callback={receiver.url}/")
    courier.wait_until_courier_died()
    assert not mark.exists()
    courier.start_courier()
    told = courier.end_of(job_id)
    assert (told["state"], told["source"]["sha256"]) == ("succeeded", hashlib.sha256(ORDERS).hexdigest())
    assert result(courier, job_id) == b"".join(document(4))
    receiver.wait_for_requests(1)
    names = {path.name for path in courier.folder.job(job_id).iterdir()}
    assert "video.partial" not in names


def test_every_place_of_the_courier_has_a_test() -> None:
    places = {name for name, module in points_in_source().items() if module in OF_THE_COURIER}
    assert places <= {*FETCHING, *DELIVERING}


@pytest.mark.parametrize("point", DELIVERING)
def test_a_kill_at_a_step_of_a_delivery_delivers_once_more_with_the_same_id(
    courier: Instance, origin: Origin, receiver: Origin, point: str
) -> None:
    mark = Path(courier.settings["FAILPOINTS"]) / point
    mark.touch()
    job_id = post_async(courier, {"url": f"{origin.url}/v"}, f"?callback={receiver.url}/")
    courier.wait_until_courier_died()
    assert not mark.exists()
    seen = len(receiver.requests)
    assert seen == (1 if point == "delivery_answered" else 0)
    courier.start_courier()
    receiver.wait_for_requests(seen + 1)
    wait_until(lambda: courier.report(job_id)["callbacks"][0]["state"] == "delivered")
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert courier.report(job_id)["callbacks"][0]["attempts"] == 2


@pytest.mark.parametrize("seed", range(2))
def test_kills_in_the_middle_of_a_download_give_the_same_bytes(
    courier: Instance, origin: Origin, seed: int
) -> None:
    """A server that breaks off, is asked for the rest, and stops there until the courier is dead."""
    rng = random.Random(seed)
    content = b'{"frames": 7}' + b" " * 2_000_000
    video, halted, killed = Video(content), threading.Event(), threading.Event()

    def halting(exchange: Exchange) -> None:
        killed.clear()
        video.serve(exchange, cut_after=rng.randrange(300_000))
        halted.set()
        killed.wait(SECONDS)

    for _ in range(3):
        origin.script.extend([video.cut(rng.randrange(1, 300_000)), halting])
    origin.usual = video.serve
    job_id = post_async(courier, {"url": f"{origin.url}/v"})
    for _ in range(3):
        assert halted.wait(SECONDS)
        halted.clear()
        courier.kill_courier()
        killed.set()
        courier.start_courier()
    told = courier.end_of(job_id)
    assert (told["state"], told["source"]["sha256"]) == ("succeeded", hashlib.sha256(content).hexdigest())
    assert result(courier, job_id) == b"".join(document(7))
    assert all("range" in request.headers for request in origin.requests[1:])


def test_callbacks_are_refused_where_there_is_nothing_to_sign_with(tmp_path: Path) -> None:
    with running_instance(tmp_path) as bare:
        answer = upload(bare, callback="https://example.org/")
        assert (answer.status_code, answer.json()["parameter"]) == (400, "callback")
        assert "FRAMEBOX_WEBHOOK_SECRET" in answer.json()["allowed"]
