"""Videos fetched from servers that cut, change, redirect, lie and dawdle: whole, unmixed, or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme
from origin import Exchange, Origin, Video, running_origin
from stores import Stores

from app.courier import fetcher as fetcher_module
from app.courier.fetcher import Fetcher, FetchLimits
from app.egress.addresses import Address, AddressRules
from app.egress.connection import Outbound, Timeouts, make_trust
from app.egress.targets import parse_target
from app.jobs.fetches import FetchStore
from app.jobs.intake import Intake
from app.jobs.job import OWNER, Job, JobRequest, JobState, Waiting
from app.metrics import Metrics
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import DataFolder
from app.storage.ingest import Ingest
from app.storage.space import SpaceLedger
from app.storage.spool import Spool
from app.storage.uploads import UploadLimits, Uploads

CONTENT = random.Random(1).randbytes(3_000_000)
LIMITS = FetchLimits(10_000_000, failures=3, first_pause_seconds=0.001, longest_pause_seconds=0.01)
SECRET = "X-Amz-Signature=0123456789abcdef"  # noqa: S105 - for nothing


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def origin(authority: trustme.CA) -> Iterator[Origin]:
    with running_origin(authority, "store.example") as origin:
        yield origin


class Setup:
    """A data folder and a fetcher on it; names are looked up in `names`, which leads to this machine."""

    def __init__(self, root: Path, authority: trustme.CA) -> None:
        self.data = DataFolder(root)
        self.data.create()
        self.store = Stores(self.data.database)
        self.store.database.create()
        self.fetches = FetchStore(self.store.database)
        self.names: dict[str, Sequence[str]] = {"store.example": ["127.0.0.1"]}
        self.free_bytes = 10**12
        self.space = SpaceLedger(
            self.data.space_ledger, self.data.root, min_free_bytes=0, measure=lambda _: self.free_bytes
        )
        self.stop = threading.Event()
        self._authority_file = root / "ca.pem"
        authority.cert_pem.write_to_path(str(self._authority_file))

    def fetcher(
        self,
        limits: FetchLimits = LIMITS,
        allowed: Sequence[str] = ("store.example",),
        timeouts: Timeouts | None = None,
    ) -> Fetcher:
        return Fetcher(
            data=self.data,
            fetches=self.fetches,
            uploads=self.uploads(),
            outbound=Outbound(
                AddressRules(allowed),
                make_trust(self._authority_file),
                lookup=self._look_up,
                timeouts=timeouts,
            ),
            limits=limits,
            metrics=Metrics(),
            stop=self.stop,
        )

    def uploads(self, boot: str = "1") -> Uploads:
        return Uploads(self.data.fetches, self.space, UploadLimits(3600.0), boot_id=lambda: boot)

    def _look_up(self, name: str, _port: int) -> Sequence[Address]:
        if name not in self.names:
            raise OSError("no such name")
        return [ip_address(address) for address in self.names[name]]

    def add(self, url: str) -> str:
        request = JobRequest(OWNER, "request", "none", DetectionOptions())
        intake = Intake(self.data, self.store, Spool(self.data, self.space), Ingest(()))
        return intake.from_url(request, url, parse_target(url, AddressRules(["store.example"]))).id

    def fetch(self, url: str, limits: FetchLimits = LIMITS, timeouts: Timeouts | None = None) -> Job:
        job_id = self.add(url)
        self.fetcher(limits, timeouts=timeouts).fetch(job_id)
        return self.store.get(job_id, owner=OWNER)

    def video(self, job: Job) -> bytes:
        return self.data.video(job.id).read_bytes()


@pytest.fixture
def setup(tmp_path: Path, authority: trustme.CA) -> Iterator[Setup]:
    setup = Setup(tmp_path / "data", authority)
    yield setup
    setup.store.database.close()


def assert_fetched(setup: Setup, job: Job, content: bytes) -> None:
    assert (job.state, job.problem, job.waiting) == (JobState.QUEUED, None, None)
    assert setup.video(job) == content
    assert (job.source.size_bytes, job.source.received_bytes) == (len(content), len(content))
    assert job.source.sha256 == hashlib.sha256(content).hexdigest()
    assert [path.name for path in setup.data.job(job.id).iterdir()] == ["video"]
    assert setup.fetches.get(job.id) is None
    assert setup.store.queue.claim(setup.store.queue.begin_epoch(pid=1)) is not None


def assert_failed(setup: Setup, job: Job, code: str) -> None:
    assert job.state is JobState.FAILED
    assert job.problem is not None
    assert job.problem["code"] == code
    assert not [*setup.data.job(job.id).iterdir()]
    assert SECRET not in str(job)
    (urls,) = setup.store.database.read("SELECT count(*) FROM fetches").fetchone()
    assert urls == 0
    assert setup.space.available_bytes() == setup.free_bytes


def test_a_video_comes_in_one_go_over_a_connection_to_the_name(setup: Setup, origin: Origin) -> None:
    origin.usual = Video(CONTENT).serve
    job = setup.fetch(f"{origin.url}/a%2Fb/video.mp4?{SECRET}")
    assert_fetched(setup, job, CONTENT)
    (request,) = origin.requests
    assert (request.method, request.path) == ("GET", f"/a%2Fb/video.mp4?{SECRET}")
    assert request.headers["host"] == origin.url.removeprefix("https://")
    assert request.headers["accept-encoding"] == "identity"
    assert not {"authorization", "cookie", "range"} & {*request.headers}


@pytest.mark.parametrize("seed", range(5))
def test_a_video_cut_at_random_places_goes_on_from_there(setup: Setup, origin: Origin, seed: int) -> None:
    video, places = Video(CONTENT), random.Random(seed)
    origin.script.extend(video.cut(places.randrange(300_000)) for _ in range(8))
    origin.usual = video.serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)
    starts = [request.headers.get("range") for request in origin.requests]
    assert starts[-1] not in (None, "bytes=0-")
    assert all(
        request.headers["if-range"] == video.etag for request in origin.requests if "range" in request.headers
    )


def test_a_chunked_video_shows_its_end_and_its_being_cut(setup: Setup, origin: Origin) -> None:
    def chunks(exchange: Exchange, *, is_whole: bool) -> None:
        exchange.send_head(200, Transfer_Encoding="chunked")
        for start in range(0, len(CONTENT), 700_000):
            piece = CONTENT[start : start + 700_000]
            exchange.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        exchange.write(b"0\r\n\r\n" if is_whole else b"")

    origin.script.append(lambda exchange: chunks(exchange, is_whole=False))
    origin.usual = lambda exchange: chunks(exchange, is_whole=True)
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)
    assert len(origin.requests) == 2


def test_a_video_that_changed_under_way_starts_over_and_is_never_mixed(setup: Setup, origin: Origin) -> None:
    other = random.Random(2).randbytes(2_000_000)
    origin.script.append(Video(CONTENT).cut(1_000_000))
    origin.usual = Video(other).serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), other)


def test_a_part_of_another_video_is_not_appended_even_where_the_server_ignores_if_range(
    setup: Setup, origin: Origin
) -> None:
    other = random.Random(2).randbytes(len(CONTENT))

    def careless(exchange: Exchange) -> None:
        start = exchange.range_start() or 0
        extent = f"bytes {start}-{len(other) - 1}/{len(other)}"
        exchange.send(206 if start else 200, other[start:], ETag='"other"', Content_Range=extent)

    origin.script.append(Video(CONTENT).cut(1_000_000))
    origin.usual = careless
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), other)


def test_a_video_that_never_stays_the_same_fails(setup: Setup, origin: Origin) -> None:
    for number in range(10):
        origin.script.append(Video(CONTENT, etag=f'"{number}"').cut(1_000_000 + 100_000 * number))
    assert_failed(setup, setup.fetch(f"{origin.url}/v?{SECRET}"), "source_changed")


def test_without_ranges_a_cut_video_comes_again_from_its_start(setup: Setup, origin: Origin) -> None:
    video = Video(CONTENT, ranges=False)
    origin.script.extend([video.cut(2_000_000), video.cut(100_000)])
    origin.usual = video.serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)


def test_without_a_validator_nothing_is_appended(setup: Setup, origin: Origin) -> None:
    video = Video(CONTENT, etag="")
    origin.script.append(video.cut(2_000_000))
    origin.usual = video.serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)
    assert [request.headers.get("range") for request in origin.requests] == [None, None]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(setup: Setup, origin: Origin, status: int) -> None:
    origin.usual = lambda exchange: exchange.send(status, Location=f"{origin.url}/elsewhere")
    job = setup.fetch(f"{origin.url}/v?{SECRET}")
    assert_failed(setup, job, "source_refused")
    assert job.problem is not None
    assert job.problem["source_status"] == status
    assert len(origin.requests) == 1


def test_an_expired_signature_is_final_and_told(setup: Setup, origin: Origin) -> None:
    origin.script.append(Video(CONTENT).cut(1_000_000))
    origin.usual = lambda exchange: exchange.send(403, b"<Error>expired</Error>")
    job = setup.fetch(f"{origin.url}/v?{SECRET}")
    assert_failed(setup, job, "source_refused")
    assert job.problem is not None
    assert (job.problem["source_status"], job.problem["status"]) == (403, 422)


def test_a_server_that_is_busy_is_asked_again(setup: Setup, origin: Origin) -> None:
    origin.script.extend([lambda exchange: exchange.send(503, Retry_After="0")] * 3)
    origin.usual = Video(CONTENT).serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)


def test_a_server_that_stays_broken_fails_the_job_with_its_status(setup: Setup, origin: Origin) -> None:
    origin.usual = lambda exchange: exchange.send(500)
    job = setup.fetch(f"{origin.url}/v?{SECRET}")
    assert_failed(setup, job, "source_unreachable")
    assert job.problem is not None
    assert job.problem["source_status"] == 500
    assert len(origin.requests) == LIMITS.failures + 1


def test_a_video_over_the_limit_is_not_fetched(setup: Setup, origin: Origin) -> None:
    origin.usual = Video(CONTENT).serve
    limits = replace(LIMITS, max_bytes=len(CONTENT) - 1)
    assert_failed(setup, setup.fetch(f"{origin.url}/v", limits), "too_large")
    assert_fetched(setup, setup.fetch(f"{origin.url}/v", replace(limits, max_bytes=len(CONTENT))), CONTENT)


def test_a_video_of_unknown_length_is_cut_off_at_the_limit(setup: Setup, origin: Origin) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.send_head(200, Transfer_Encoding="chunked")
        for _ in range(1000):
            exchange.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    origin.usual = endless
    assert_failed(setup, setup.fetch(f"{origin.url}/v", replace(LIMITS, max_bytes=1_000_000)), "too_large")


def test_an_empty_video_is_none(setup: Setup, origin: Origin) -> None:
    origin.usual = lambda exchange: exchange.send(200)
    assert_failed(setup, setup.fetch(f"{origin.url}/v"), "empty_body")


def test_a_server_that_dawdles_counts_as_gone(
    setup: Setup, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "PACE_SECONDS", 0.2)
    gone = threading.Event()

    def dawdle(exchange: Exchange) -> None:
        exchange.send_head(200, Content_Length=str(len(CONTENT)))
        while not gone.wait(0.02):
            exchange.write(b"x")

    origin.usual = dawdle
    try:
        job = setup.fetch(f"{origin.url}/v", replace(LIMITS, failures=1))
        assert_failed(setup, job, "source_unreachable")
        assert "next to nothing" in str(job.problem)
    finally:
        gone.set()


def test_a_head_that_never_ends_is_cut_off(setup: Setup, origin: Origin) -> None:
    gone = threading.Event()

    def drip(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\n")
        while not gone.wait(0.02):
            exchange.write(b"X: y\r\n")

    origin.usual = drip
    try:
        timeouts = Timeouts(connect=5, read=5, head=0.3)
        job = setup.fetch(f"{origin.url}/v", replace(LIMITS, failures=0), timeouts=timeouts)
        assert_failed(setup, job, "source_unreachable")
    finally:
        gone.set()


def test_a_head_that_is_cut_is_no_answer(setup: Setup, origin: Origin) -> None:
    origin.script.append(lambda exchange: exchange.write(b"HTTP/1.1 200 OK\r\nETag: 1\r\nContent-Le"))
    origin.script.append(lambda exchange: exchange.write(b""))
    origin.script.append(lambda exchange: exchange.write(b"no HTTP at all\r\n\r\n"))
    origin.usual = Video(CONTENT).serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)


def test_a_server_without_a_valid_certificate_for_its_name_is_not_asked(
    setup: Setup, authority: trustme.CA
) -> None:
    for issuer, name in ((trustme.CA(), "store.example"), (authority, "other.example")):
        with running_origin(issuer, name) as origin:
            port = origin.url.rpartition(":")[2]
            job = setup.fetch(f"https://store.example:{port}/v", replace(LIMITS, failures=0))
            assert_failed(setup, job, "source_unreachable")
            assert "certificate" in str(job.problem)
            assert not origin.requests


def test_nobody_asks_a_name_that_leads_to_a_private_address(setup: Setup, origin: Origin) -> None:
    port = origin.url.rpartition(":")[2]
    origin.usual = Video(CONTENT).serve
    for addresses in (
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
    ):
        setup.names["public.example"] = addresses
        # The port is one of the administrator's: so that the address alone decides.
        fetcher = setup.fetcher(allowed=["store.example"])
        job_id = setup.add(f"https://public.example:8443/v?{SECRET}")
        fetcher.fetch(job_id)
        job = setup.store.get(job_id, owner=OWNER)
        assert_failed(setup, job, "source_refused")
        assert "private" in str(job.problem)
    assert not origin.requests
    assert port


def test_the_connection_goes_to_the_address_that_was_looked_at(setup: Setup, origin: Origin) -> None:
    """A name that leads elsewhere a moment later changes nothing: it is looked up once a connection."""
    origin.usual = Video(CONTENT).serve
    looked_up: list[str] = []
    fetcher = setup.fetcher()
    job_id = setup.add(f"{origin.url}/v")
    look_up = setup._look_up

    def rebinding(name: str, port: int) -> Sequence[Address]:
        looked_up.append(name)
        return look_up(name, port) if len(looked_up) == 1 else [ip_address("10.0.0.1")]

    fetcher.outbound._lookup = rebinding
    fetcher.fetch(job_id)
    assert_fetched(setup, setup.store.get(job_id, owner=OWNER), CONTENT)
    assert looked_up == ["store.example"]


def test_no_proxy_or_password_is_taken_from_the_environment(
    setup: Setup, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine store.example login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    origin.usual = Video(CONTENT).serve
    assert_fetched(setup, setup.fetch(f"{origin.url}/v"), CONTENT)
    assert "authorization" not in origin.requests[0].headers


def test_a_cancelled_fetch_stops_and_leaves_nothing(
    setup: Setup, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "PROGRESS_SECONDS", 0.0)
    reached, go_on = threading.Event(), threading.Event()

    def halting(exchange: Exchange) -> None:
        exchange.send_head(200, Content_Length=str(len(CONTENT)), ETag='"1"')
        exchange.write(CONTENT[:1_000_000])
        reached.set()
        go_on.wait(20)
        exchange.write(CONTENT[1_000_000:])

    origin.usual = halting
    job_id = setup.add(f"{origin.url}/v?{SECRET}")
    thread = threading.Thread(target=setup.fetcher().fetch, args=(job_id,), name="fetch")
    thread.start()
    try:
        assert reached.wait(20)
        assert setup.store.request_cancel(job_id, owner=OWNER).state is JobState.CANCELLED
        setup.data.remove_inputs(job_id)
    finally:
        go_on.set()
        thread.join(20)
    assert setup.store.get(job_id, owner=OWNER).state is JobState.CANCELLED
    assert not [*setup.data.job(job_id).iterdir()]
    assert setup.fetches.wanted(10) == []


def interrupt(setup: Setup, origin: Origin, video: Video) -> str:
    """Begin a fetch, and end the process after 1.5 MB. Return the job's id."""
    origin.script.append(video.cut(1_500_000))

    def stop_and_refuse(exchange: Exchange) -> None:
        setup.stop.set()
        exchange.send(503)

    origin.usual = stop_and_refuse
    job_id = setup.add(f"{origin.url}/v")
    setup.fetcher().fetch(job_id)
    assert setup.store.get(job_id, owner=OWNER).waiting is Waiting.SOURCE
    setup.stop.clear()
    origin.usual = video.serve
    return job_id


def test_what_has_arrived_counts_after_a_restart(setup: Setup, origin: Origin) -> None:
    job_id = interrupt(setup, origin, Video(CONTENT))
    fetcher = setup.fetcher()
    fetcher.recover()
    fetcher.fetch(job_id)
    assert origin.requests[-1].headers["range"] == "bytes=1500000-"
    assert_fetched(setup, setup.store.get(job_id, owner=OWNER), CONTENT)


def test_what_a_power_failure_lost_is_fetched_again(setup: Setup, origin: Origin) -> None:
    setup.uploads().recover()
    job_id = interrupt(setup, origin, Video(CONTENT))
    video = setup.data.fetches / job_id / "video"
    os.truncate(video, 1_048_576)
    os.truncate(video, 1_500_000)  # the new size reached the disk, the bytes did not
    setup.uploads(boot="2").recover()
    setup.fetcher().fetch(job_id)
    assert origin.requests[-1].headers["range"] == "bytes=1048576-"
    assert_fetched(setup, setup.store.get(job_id, owner=OWNER), CONTENT)


def test_a_restarted_fetch_hashes_nothing_again(
    setup: Setup, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.hashing.CATCH_UP_BYTES", 0)  # then it would have no digest
    job_id = interrupt(setup, origin, Video(CONTENT))
    setup.fetcher().fetch(job_id)
    assert_fetched(setup, setup.store.get(job_id, owner=OWNER), CONTENT)


def test_what_was_fetched_for_a_cancelled_job_is_removed(setup: Setup, origin: Origin) -> None:
    job_id = interrupt(setup, origin, Video(CONTENT))
    wanted = interrupt(setup, origin, Video(CONTENT))
    setup.store.request_cancel(job_id, owner=OWNER)
    setup.fetcher().remove_unwanted(())
    assert [folder.name for folder in setup.uploads().folders()] == [wanted]


def test_a_video_that_was_in_place_before_its_record_needs_no_second_request(
    setup: Setup, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.usual = Video(CONTENT).serve
    job_id = setup.add(f"{origin.url}/v")
    with monkeypatch.context() as patch:
        patch.setattr(setup.fetches, "complete", _die)
        with pytest.raises(SystemExit):
            setup.fetcher().fetch(job_id)
    assert setup.data.video(job_id).exists()
    setup.fetcher().fetch(job_id)
    assert len(origin.requests) == 1
    assert_fetched(setup, setup.store.get(job_id, owner=OWNER), CONTENT)


def _die(*_: object) -> bool:
    raise SystemExit


def test_a_full_disk_makes_the_fetch_wait_and_room_lets_it_go_on(
    setup: Setup, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "NO_ROOM_SECONDS", 0.01)
    setup.free_bytes = 1000
    origin.usual = Video(CONTENT).serve
    job_id = setup.add(f"{origin.url}/v")
    thread = threading.Thread(target=setup.fetcher().fetch, args=(job_id,), name="fetch")
    thread.start()
    deadline = time.monotonic() + 20
    while setup.store.get(job_id, owner=OWNER).waiting is not Waiting.DISK_SPACE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    setup.free_bytes = 10**12
    thread.join(20)
    assert_fetched(setup, setup.store.get(job_id, owner=OWNER), CONTENT)


def test_a_job_that_has_waited_too_long_for_its_video_fails(setup: Setup, origin: Origin) -> None:
    origin.usual = lambda exchange: exchange.send(503)
    job = setup.fetch(f"{origin.url}/v", replace(LIMITS, max_seconds=-1.0))
    assert_failed(setup, job, "source_unreachable")


def test_a_name_that_nobody_knows_is_tried_again_and_then_fails(setup: Setup) -> None:
    job = setup.fetch("https://nobody.example/v")
    assert_failed(setup, job, "source_unreachable")
    assert "name" in str(job.problem)


def test_trust_is_in_public_authorities_where_no_other_is_given() -> None:
    assert make_trust(None).verify_mode is ssl.CERT_REQUIRED
