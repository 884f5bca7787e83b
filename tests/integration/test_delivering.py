"""Callbacks to servers that answer, refuse, hang and go away: signed, at least once, with one id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme
from origin import Exchange, Origin, Request, running_origin
from sample_reports import model_report
from standardwebhooks import Webhook
from stores import Stores

from app.courier.deliverer import MOST_ATTEMPTS, Deliverer
from app.egress.addresses import Address, AddressRules
from app.egress.connection import Outbound, Timeouts, make_trust
from app.jobs.deliveries import DeliveryStore
from app.jobs.job import OWNER, Callback, Delivery, DeliveryState, JobRequest, JobState, VideoSource
from app.jobs.queue import HOLD_SECONDS
from app.jobs.retention import Retention, RetentionLimits
from app.metrics import Metrics
from app.pipeline.options import DetectionOptions
from app.pipeline.report import DetectionReport
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.space import SpaceLedger
from app.storage.uploads import UploadLimits, Uploads
from app.web.report import callback_body

OLD, NEW = (f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}" for _ in range(2))
FOREVER = 1e12


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def receiver(authority: trustme.CA) -> Iterator[Origin]:
    with running_origin(authority, "hooks.example") as receiver:
        receiver.usual = lambda exchange: exchange.send(204)
        yield receiver


class Setup:
    """A job store with a deliverer; every name leads to this machine."""

    def __init__(self, root: Path, authority: trustme.CA) -> None:
        self.data = DataFolder(root)
        self.data.create()
        self.store = Stores(self.data.database)
        self.store.database.create()
        self.deliveries = DeliveryStore(self.store.database)
        self.epoch = self.store.queue.begin_epoch(pid=1)
        self._authority_file = root / "ca.pem"
        authority.cert_pem.write_to_path(str(self._authority_file))

    def deliverer(self, *keys: str, allowed: Sequence[str] = ("hooks.example",)) -> Deliverer:
        return Deliverer(
            store=self.store,
            report=callback_body,
            deliveries=self.deliveries,
            outbound=Outbound(
                AddressRules(allowed),
                make_trust(self._authority_file),
                lookup=self._look_up,
                timeouts=Timeouts(connect=5, read=0.5, head=0.5),
            ),
            secrets=keys or (NEW,),
            metrics=Metrics(),
        )

    def _look_up(self, _name: str, _port: int) -> Sequence[Address]:
        return [ip_address("127.0.0.1")]

    def add(self, *urls: str, sha256: str | None = None) -> str:
        """One job to which all of `urls` are attached, and earlier ones of an equal video too."""
        source, job_id = VideoSource(1, sha256 or secrets.token_hex(32), None), new_job_id()
        for url in urls:
            callback = Callback(url, url.partition("?")[0])
            request = JobRequest(
                OWNER, "r", "none", DetectionOptions(), model_sha256="1", callback=callback, may_attach=True
            )
            job_id = self.store.add(job_id, request, source).id
        return job_id

    def end(self, state: JobState = JobState.SUCCEEDED) -> None:
        job = self.store.queue.claim(self.epoch)
        assert job is not None
        self.store.queue.finish(
            job.id, self.epoch, state, report=DetectionReport(model=model_report(sha256="1"))
        )

    def ended(self, *urls: str) -> str:
        job_id = self.add(*urls)
        self.end()
        return job_id

    def deliver(self, deliverer: Deliverer, *, now: float = FOREVER) -> int:
        """Make the attempts that are due at `now`; return how many."""
        due = self.deliveries.due(100, now=now)
        for attempt in due:
            deliverer.deliver(attempt)
        return len(due)

    def retention(self, limits: RetentionLimits, *, now: float) -> Retention:
        space = SpaceLedger(self.data.space_ledger, self.data.root, min_free_bytes=0)
        uploads = Uploads(self.data.uploads, space, UploadLimits(keep_seconds=60.0, max_open=1))
        return Retention(self.data, self.store.queue, limits, uploads, clock=lambda: now)

    def state(self, job_id: str) -> Delivery:
        (delivery,) = self.store.get(job_id, owner=OWNER).deliveries
        return delivery


@pytest.fixture
def setup(tmp_path: Path, authority: trustme.CA) -> Iterator[Setup]:
    setup = Setup(tmp_path / "data", authority)
    yield setup
    setup.store.database.close()


def signature(secret: str, request: Request) -> str:
    """As the specification has it, computed anew."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    words = (request.headers["webhook-id"], request.headers["webhook-timestamp"])
    signed = ".".join(words).encode() + b"." + request.body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def test_the_report_of_an_ended_job_is_posted_and_signed(setup: Setup, receiver: Origin) -> None:
    job_id = setup.ended(f"{receiver.url}/hook?token=1")
    assert setup.deliver(setup.deliverer()) == 1
    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", "/hook?token=1")
    assert request.headers["content-type"] == "application/json"
    report = json.loads(request.body)
    assert (report["id"], report["state"]) == (job_id, "succeeded")
    assert report["links"]["result"] == f"/v1/jobs/{job_id}/result"
    assert "callbacks" not in report
    assert request.headers["webhook-signature"] == signature(NEW, request)
    assert Webhook(NEW).verify(request.body, request.headers) == report
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    delivery = setup.state(job_id)
    assert delivery.id == request.headers["webhook-id"]
    assert (delivery.state, delivery.attempts, delivery.last_status) == (DeliveryState.DELIVERED, 1, 204)
    assert delivery.delivered_at is not None
    assert delivery.next_at is None
    assert setup.deliver(setup.deliverer()) == 0


def test_nothing_is_told_before_the_end(setup: Setup, receiver: Origin) -> None:
    job_id = setup.add(f"{receiver.url}/hook")
    assert setup.deliver(setup.deliverer()) == 0
    assert setup.state(job_id).next_at is None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_every_end_is_told(setup: Setup, receiver: Origin, state: JobState) -> None:
    setup.add(f"{receiver.url}/hook")
    setup.end(state)
    setup.deliver(setup.deliverer())
    assert json.loads(receiver.requests[0].body)["state"] == state


def test_the_cancelling_of_a_job_that_never_began_is_told(setup: Setup, receiver: Origin) -> None:
    setup.store.request_cancel(setup.add(f"{receiver.url}/hook"), owner=OWNER)
    setup.deliver(setup.deliverer())
    assert json.loads(receiver.requests[0].body)["state"] == "cancelled"


def test_old_and_new_secret_sign_while_receivers_change(setup: Setup, receiver: Origin) -> None:
    setup.ended(f"{receiver.url}/hook")
    setup.deliver(setup.deliverer(NEW, OLD))
    (request,) = receiver.requests
    assert request.headers["webhook-signature"].split() == [signature(NEW, request), signature(OLD, request)]
    for secret in (OLD, NEW):
        Webhook(secret).verify(request.body, request.headers)


@pytest.mark.parametrize("status", [301, 308, 400, 404, 429, 500, 503])
def test_any_answer_but_a_success_is_tried_again_with_the_same_id_and_body(
    setup: Setup, receiver: Origin, status: int
) -> None:
    receiver.script.append(lambda exchange: exchange.send(status, Location=f"{receiver.url}/elsewhere"))
    job_id = setup.ended(f"{receiver.url}/hook")
    deliverer = setup.deliverer()
    setup.deliver(deliverer)
    delivery = setup.state(job_id)
    assert (delivery.state, delivery.attempts, delivery.last_status) == (DeliveryState.PENDING, 1, status)
    assert delivery.next_at is not None
    assert 0 < delivery.next_at - time.time() < 10
    assert setup.deliver(deliverer, now=time.time()) == 0
    assert setup.deliver(deliverer, now=delivery.next_at + 1) == 1
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert second.path == "/hook"
    assert setup.state(job_id).state is DeliveryState.DELIVERED


def test_retry_after_is_respected(setup: Setup, receiver: Origin) -> None:
    receiver.usual = lambda exchange: exchange.send(503, Retry_After="3600")
    job_id = setup.ended(f"{receiver.url}/hook")
    setup.deliver(setup.deliverer())
    next_at = setup.state(job_id).next_at
    assert next_at is not None
    assert 3500 < next_at - time.time() <= 3600


def test_gone_stops_at_once(setup: Setup, receiver: Origin) -> None:
    receiver.usual = lambda exchange: exchange.send(410)
    job_id = setup.ended(f"{receiver.url}/hook")
    setup.deliver(setup.deliverer())
    delivery = setup.state(job_id)
    assert (delivery.state, delivery.last_status, delivery.next_at) == (DeliveryState.GIVEN_UP, 410, None)
    assert setup.deliver(setup.deliverer()) == 0


def test_after_the_last_attempt_it_is_given_up(setup: Setup, receiver: Origin) -> None:
    receiver.usual = lambda exchange: exchange.send(500)
    job_id = setup.ended(f"{receiver.url}/hook")
    attempts = 0
    while setup.deliver(setup.deliverer()):
        attempts += 1
    delivery = setup.state(job_id)
    assert attempts == MOST_ATTEMPTS == delivery.attempts == len(receiver.requests)
    assert (delivery.state, delivery.last_status) == (DeliveryState.GIVEN_UP, 500)


def test_an_attempt_that_the_courier_did_not_outlive_is_made_again_and_counted(
    setup: Setup, receiver: Origin
) -> None:
    job_id = setup.ended(f"{receiver.url}/hook")
    setup.deliveries.begin(setup.state(job_id).id, next_at=time.time())
    setup.deliver(setup.deliverer())
    assert (setup.state(job_id).state, setup.state(job_id).attempts) == (DeliveryState.DELIVERED, 2)


def test_a_receiver_that_never_lets_the_courier_live_is_given_up(setup: Setup, receiver: Origin) -> None:
    job_id = setup.ended(f"{receiver.url}/hook")
    for _ in range(MOST_ATTEMPTS):
        setup.deliveries.begin(setup.state(job_id).id, next_at=0.0)
    setup.deliver(setup.deliverer())
    assert setup.state(job_id).state is DeliveryState.GIVEN_UP
    assert not receiver.requests


def test_a_receiver_that_hangs_or_drips_is_left(setup: Setup, receiver: Origin) -> None:
    gone = threading.Event()

    def hang(_: Exchange) -> None:
        gone.wait(20)

    def drip(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\n")
        while not gone.wait(0.05):
            exchange.write(b"X: y\r\n")

    receiver.script.extend([hang, drip])
    job_id = setup.ended(f"{receiver.url}/hook")
    try:
        for attempt in (1, 2):
            setup.deliver(setup.deliverer())
            delivery = setup.state(job_id)
            assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, attempt)
            assert delivery.last_status is None
            assert delivery.last_error is not None
    finally:
        gone.set()


def test_an_endless_answer_is_not_read(setup: Setup, receiver: Origin) -> None:
    def flood(exchange: Exchange) -> None:
        exchange.send_head(200, Content_Length=str(10**12))
        for _ in range(2000):
            exchange.write(bytes(100_000))

    receiver.usual = flood
    job_id = setup.ended(f"{receiver.url}/hook")
    setup.deliver(setup.deliverer())
    assert setup.state(job_id).state is DeliveryState.DELIVERED


def test_a_receiver_at_a_private_address_is_never_asked(setup: Setup, receiver: Origin) -> None:
    job_id = setup.ended("https://elsewhere.example:8443/hook?token=1")
    setup.deliver(setup.deliverer())
    delivery = setup.state(job_id)
    assert (delivery.state, delivery.last_error) == (
        DeliveryState.GIVEN_UP,
        "leads to a private or special address",
    )
    assert not receiver.requests


def test_who_attaches_is_told_too_and_the_same_address_once(setup: Setup, receiver: Origin) -> None:
    urls = [f"{receiver.url}/a", f"{receiver.url}/b", f"{receiver.url}/a"]
    job_id = setup.add(*urls, sha256="ab" * 32)
    setup.end()
    assert setup.add(f"{receiver.url}/late", sha256="ab" * 32) == job_id  # it has ended: told at once
    setup.deliver(setup.deliverer())
    assert sorted(request.path for request in receiver.requests) == ["/a", "/b", "/late"]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 3


def test_a_receiver_that_hangs_keeps_no_other_waiting(setup: Setup) -> None:
    for number in range(20):
        setup.ended(f"https://slow.example/hook?job={number}")
    setup.ended("https://quick.example/hook")
    due = setup.deliveries.due(8, now=FOREVER)
    assert [attempt.url.split("/")[2] for attempt in due].count("slow.example") == 4
    assert "https://quick.example/hook" in [attempt.url for attempt in due]


def test_a_job_is_kept_until_its_end_is_told(setup: Setup, receiver: Origin) -> None:
    limits = RetentionLimits(keep_seconds=0.0, keep_free_bytes=10**18)
    job_id = setup.ended(f"{receiver.url}/hook")
    retention = setup.retention(limits, now=time.time() + 1000)
    assert retention.remove_old() == 0
    setup.deliver(setup.deliverer())
    assert setup.state(job_id).state is DeliveryState.DELIVERED
    assert retention.remove_old() == 1
    assert not setup.store.queue.ids()


def test_a_job_whose_end_nobody_delivers_is_not_kept_for_ever(setup: Setup) -> None:
    job_id = setup.ended("https://hooks.example/hook")
    with setup.store.database.transaction() as connection:
        connection.execute("UPDATE jobs SET finished_at = finished_at - ?", (HOLD_SECONDS + 60,))
    limits = RetentionLimits(keep_seconds=60.0, keep_free_bytes=0)
    assert setup.retention(limits, now=time.time()).remove_old() == 1
    assert job_id not in setup.store.queue.ids()


def test_a_deleted_jobs_end_is_not_told(setup: Setup, receiver: Origin) -> None:
    job_id = setup.ended(f"{receiver.url}/hook")
    due = setup.deliveries.due(10, now=FOREVER)
    setup.store.delete(job_id, owner=OWNER)
    setup.deliverer().deliver(due[0])
    assert not receiver.requests
    assert setup.deliveries.due(10, now=FOREVER) == []
