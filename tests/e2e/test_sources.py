"""One real video three ways, through a whole instance: sent, named by its path, named by its URL."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from instance import Instance
from origin import Origin, Video, running_origin
from standardwebhooks import Webhook

OPTIONS = {"end": "4", "stride": "10"}
LONG = {"stride": "5", "max_side": "240"}  # 279 frames in 28 segments
SIGNING = f"whsec_{base64.b64encode(os.urandom(32)).decode()}"
SECONDS = 120.0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def instance(
    tmp_path_factory: pytest.TempPathFactory, people_video: Path, authority: trustme.CA
) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("sources")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    settings = {
        "ingest": f"{people_video.parent},{folder}",
        "allowed_hosts": "127.0.0.0/8",
        "ca_file": folder / "ca.pem",
        "webhook_secret": SIGNING,
        "segment_frames": 50,
    }
    with Instance(folder / "data", **settings) as instance:
        yield instance


@pytest.fixture(scope="module")
def server(authority: trustme.CA, people_video: Path) -> Iterator[Origin]:
    """Has the video, cuts the first two connections, and takes callbacks."""
    video = Video(people_video.read_bytes())
    with running_origin(authority, "127.0.0.1") as server:
        server.script.extend([video.cut(500_000), video.cut(1)])
        server.usual = lambda exchange: (
            exchange.send(204) if exchange.request.method == "POST" else video.serve(exchange)
        )
        yield server


@pytest.fixture
def copied(instance: Instance, people_video: Path) -> Path:
    """The video once more, in an ingest folder that may be written."""
    copy = instance.data.parent / f"{os.urandom(8).hex()}.mp4"
    copy.write_bytes(people_video.read_bytes())
    return copy


@pytest.fixture(scope="module")
def sent(instance: Instance, people_video: Path) -> bytes:
    answer = instance.post(people_video, **OPTIONS)
    assert answer.status_code == 200, answer.text
    return answer.content


def post(instance: Instance, source: dict[str, str], **options: str) -> requests.Response:
    url = f"{instance.url}/v1/detections"
    return requests.post(url, params={**OPTIONS, **options}, json=source, timeout=SECONDS)


def without_sources(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("video", "completeness", "document", "model")}


def test_a_path_gives_the_answer_that_sending_gives(
    instance: Instance, people_video: Path, sent: bytes
) -> None:
    before = people_video.stat()
    answer = post(instance, {"path": people_video.name})
    assert (answer.status_code, answer.content) == (200, sent), answer.text
    assert answer.headers["Framebox-Complete"] == "true"
    after = people_video.stat()
    assert (before.st_mtime_ns, before.st_size, before.st_ino) == (
        after.st_mtime_ns,
        after.st_size,
        after.st_ino,
    )
    report = instance.report(answer.headers["Framebox-Job"])
    assert report["source"]["bytes"] == before.st_size


def test_a_url_gives_the_answer_that_sending_gives_and_its_end_is_told(
    instance: Instance, server: Origin, people_video: Path, sent: bytes
) -> None:
    answer = post(instance, {"url": f"{server.url}/people.mp4?signature=x"}, callback=f"{server.url}/done")
    assert (answer.status_code, answer.content) == (200, sent), answer.text
    server.wait_for_requests(4, SECONDS)
    report = instance.report(answer.headers["Framebox-Job"])
    assert report["source"]["sha256"] == hashlib.sha256(people_video.read_bytes()).hexdigest()
    *fetches, told = server.requests
    assert [fetch.headers.get("range") is None for fetch in fetches] == [True, False, False]
    assert (told.method, told.path) == ("POST", "/done")
    delivered = Webhook(SIGNING).verify(told.body, told.headers)
    assert delivered["id"] == report["id"]
    assert without_sources(delivered) == without_sources(report)


def test_a_file_that_is_written_to_while_its_job_runs_fails_it(instance: Instance, copied: Path) -> None:
    job_id = post_async(instance, copied, **LONG)
    instance.wait(lambda: instance.report(job_id)["progress"]["segments_done"] > 0, SECONDS, "a segment")
    with copied.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"something else")
    report = instance.wait_for_end(job_id)
    assert (report["state"], report["problem"]["code"]) == ("failed", "source_changed")


def test_a_file_that_is_deleted_while_its_job_runs_is_read_to_its_end(
    instance: Instance, copied: Path, sent: bytes
) -> None:
    job_id = post_async(instance, copied, **OPTIONS)
    instance.wait(lambda: instance.report(job_id)["video"] is not None, SECONDS, "its being open")
    copied.unlink()
    assert instance.wait_for_end(job_id)["state"] == "succeeded"
    assert instance.result(job_id) == sent


def test_a_killed_engine_goes_on_with_the_same_file_and_not_with_another(
    instance: Instance, copied: Path, sent: bytes
) -> None:
    times = copied.stat()
    jobs = [post_async(instance, copied, **OPTIONS, attach="false") for _ in range(2)]
    instance.wait(lambda: instance.report(jobs[0])["video"] is not None, SECONDS, "its being open")
    engine = instance.engine()
    engine.kill()
    engine.wait(SECONDS)
    assert [instance.wait_for_end(job_id)["state"] for job_id in jobs] == ["succeeded"] * 2
    assert [instance.result(job_id) for job_id in jobs] == [sent] * 2
    # Another file of the same name, size and time, put there while no engine runs.
    job_id = post_async(instance, copied, **LONG, attach="false")
    instance.wait(lambda: instance.report(job_id)["video"] is not None, SECONDS, "its being open")
    engine = instance.engine()
    engine.suspend()
    replacement = copied.with_suffix(".new")
    replacement.write_bytes(copied.read_bytes())
    os.utime(replacement, ns=(times.st_atime_ns, times.st_mtime_ns))
    replacement.rename(copied)
    engine.kill()
    report = instance.wait_for_end(job_id)
    assert (report["state"], report["problem"]["code"]) == ("failed", "source_changed")


def post_async(instance: Instance, video: Path, **options: str) -> str:
    answer = requests.post(
        f"{instance.url}/v1/detections",
        params=options,
        json={"path": str(video)},
        headers={"Prefer": "respond-async"},
        timeout=SECONDS,
    )
    return str(answer.json()["id"])
