"""Videos of the ingest folders, through real servers: read where they lie, while they stay the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from double_engine import document
from raw_http import chunked, exchange, post_head
from waiting import wait_until
from web_instance import WebInstance, running_instance

JSON = {"Content-Type": "application/json"}
SECONDS = 20.0


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ingest")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, ingest: Path) -> Iterator[WebInstance]:
    folder = tmp_path_factory.mktemp("paths")
    with running_instance(folder, ATTACH="true", INGEST=str(ingest), MAX_UPLOAD_BYTES="100000") as instance:
        yield instance


@pytest.fixture
def video(ingest: Path) -> Path:
    """A "video" of its own for each test: the double engine's orders."""
    return write(ingest / f"{os.urandom(8).hex()}.mp4", frames=4)


def write(path: Path, **orders: Any) -> Path:
    path.write_text(json.dumps(orders))
    return path


def post(instance: WebInstance, source: object, query: str = "", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url, body = f"{instance.url}/v1/detections{query}", json.dumps(source)
    return requests.post(url, data=body, headers=JSON | named, timeout=SECONDS)


def held_job(instance: WebInstance, hold: Path, ingest: Path) -> str:
    """The stand-in engine works on one job at a time: this one keeps it."""
    blocker = write(ingest / f"{os.urandom(8).hex()}.mp4", hold=str(hold))
    job_id = post(instance, {"path": str(blocker)}, Prefer="respond-async").json()["id"]
    wait_until(lambda: instance.report(job_id)["state"] == "running")
    return str(job_id)


def test_a_file_is_read_where_it_lies_and_stays_there(instance: WebInstance, video: Path) -> None:
    answer = post(instance, {"path": str(video)})
    assert (answer.status_code, answer.content) == (200, b"".join(document(4)))
    job_id = answer.headers["Framebox-Job"]
    assert instance.report(job_id)["source"] == {
        "kind": "path",
        "name": video.name,
        "address": str(video),
        "bytes": video.stat().st_size,
        "sha256": None,
        "received_bytes": None,
    }
    kept = sorted(path.name for path in instance.folder.job(job_id).iterdir())
    assert kept == ["result.pairs", "result.pts"]
    assert requests.delete(f"{instance.url}/v1/jobs/{job_id}", timeout=SECONDS).status_code == 204
    assert video.exists()


def test_a_file_is_named_relative_to_its_folder_too(instance: WebInstance, video: Path) -> None:
    assert post(instance, {"path": video.name}).status_code == 200


def test_options_formats_and_preferences_are_those_of_an_upload(instance: WebInstance, video: Path) -> None:
    answer = post(instance, {"path": str(video)}, "?format=csv&stride=2", Prefer="wait=10")
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert instance.report(answer.headers["Framebox-Job"])["options"]["stride"] == 2
    refused = post(instance, {"path": str(video)}, "?stride=0")
    assert (refused.status_code, refused.json()["parameter"]) == (400, "stride")


def test_the_same_file_attaches_until_it_changes(instance: WebInstance, video: Path) -> None:
    first = post(instance, {"path": str(video)})
    again = post(instance, {"path": str(video)})
    assert again.headers["Framebox-Job"] == first.headers["Framebox-Job"]
    assert again.headers["Framebox-Attached"] == "true"
    write(video, frames=5)
    changed = post(instance, {"path": str(video)})
    assert changed.headers["Framebox-Job"] != first.headers["Framebox-Job"]
    assert changed.content == b"".join(document(5))


def test_a_key_stands_for_the_body_too(instance: WebInstance, video: Path, ingest: Path) -> None:
    key = os.urandom(8).hex()
    first = post(instance, {"path": str(video)}, Idempotency_Key=key)
    again = post(instance, {"path": str(video)}, Idempotency_Key=key)
    assert again.headers["Framebox-Job"] == first.headers["Framebox-Job"]
    other = write(ingest / f"{key}.mp4", frames=4)
    refused = post(instance, {"path": str(other)}, Idempotency_Key=key)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    assert refused.json()["differs"] == ["content"]
    differing = post(instance, {"path": str(video)}, "?stride=3", Idempotency_Key=key)
    assert (differing.status_code, differing.json()["differs"]) == (422, ["options"])


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ({"path": "/etc/passwd"}, 400, "invalid_source"),
        ({"path": "../secret"}, 400, "invalid_source"),
        ({"path": "nothing.mp4"}, 422, "source_not_found"),
        ({"path": 5}, 400, "invalid_source"),
        ({"file": "a.mp4"}, 400, "invalid_source"),
        ([], 400, "invalid_source"),
    ],
)
def test_a_body_that_names_no_video_is_told_so(
    instance: WebInstance, source: object, status: int, code: str
) -> None:
    before = {*instance.folder.jobs.iterdir()}
    answer = post(instance, source)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert {*instance.folder.jobs.iterdir()} == before
    assert not [*instance.folder.incoming.iterdir()]


def test_a_json_body_has_a_small_limit_of_its_own(instance: WebInstance, ingest: Path) -> None:
    answer = post(instance, {"path": "x" * 70_000})
    assert (answer.status_code, answer.json()["limit_bytes"]) == (413, 65536)
    head = post_head("", "application/json", "Transfer-Encoding: chunked") + b"\r\n"
    raw = exchange(instance.port, head + chunked(b'{"path": "', b"x" * 70_000, b'"}'))
    assert (raw.status, raw.problem["limit_bytes"]) == (413, 65536)


def test_an_empty_file_is_no_video(instance: WebInstance, ingest: Path) -> None:
    (ingest / "empty.mp4").touch()
    answer = post(instance, {"path": "empty.mp4"})
    assert (answer.status_code, answer.json()["code"]) == (400, "empty_body")


def test_a_file_that_changes_while_it_waits_fails_its_job(
    instance: WebInstance, video: Path, ingest: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "go"
    held_job(instance, hold, ingest)
    job_id = post(instance, {"path": str(video)}, Prefer="respond-async").json()["id"]
    write(video, frames=40)
    hold.touch()
    ended = instance.end_of(job_id)
    assert (ended["state"], ended["problem"]["code"]) == ("failed", "source_changed")


def test_a_file_that_is_gone_when_its_turn_comes_fails_its_job(
    instance: WebInstance, video: Path, ingest: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "go"
    held_job(instance, hold, ingest)
    job_id = post(instance, {"path": str(video)}, Prefer="respond-async").json()["id"]
    video.unlink()
    hold.touch()
    ended = instance.end_of(job_id)
    assert (ended["state"], ended["problem"]["code"]) == ("failed", "source_not_found")
    assert str(ingest) not in ended["problem"]["detail"]
