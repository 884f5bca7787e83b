"""A kill at any durable step of an upload loses nothing, does nothing twice, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from double_engine import document
from failpoints import OF_THE_WEB_SIDE, Armed, points_in_source
from waiting import wait_until
from web_instance import WebInstance, running_instance

SECONDS = 60.0
FRAMES = 4
VIDEO = b'{"frames": %d}' % FRAMES + b" " * 3000
OF_RAW_BODIES = {"body_received", "body_moved"}
OF_FORMS = {"upload_received"}
OF_PATHS = {"empty_job_made"}
OF_ALL = {"upload_durable", "upload_renamed", "upload_published", "job_accepted"}
OF_RESUMABLE_UPLOADS = {
    "upload_created",
    "chunk_received",
    "chunk_durable",
    "parts_claimed",
    "first_part_moved",
    "step_joined",
    "upload_linked",
    "upload_accepted",
    "upload_spent",
}

Post = Callable[[dict[str, str]], requests.Response]


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Armed:
    return Armed(tmp_path_factory.mktemp("armed") / "failpoints")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, armed: Armed) -> Iterator[WebInstance]:
    folder = tmp_path_factory.mktemp("failpoints")
    ingest = folder / "ingest"
    ingest.mkdir()
    (ingest / "video").write_bytes(VIDEO)
    with running_instance(folder, INGEST=str(ingest), FAILPOINTS=str(armed.folder)) as instance:
        yield instance


def job_ids(instance: WebInstance) -> set[str]:
    answer = requests.get(f"{instance.url}/v1/jobs?limit=200", timeout=30)
    return {job["id"] for job in answer.json()["jobs"]}


def leftovers(instance: WebInstance) -> list[Path]:
    folder, known = instance.folder, job_ids(instance)
    return [path for path in folder.jobs.iterdir() if path.name not in known] + [*folder.incoming.iterdir()]


def post_until_accepted(post: Post) -> str:
    """Post with a key again and again, as a client does whose connection broke; return the job's id."""
    headers = {"Prefer": "respond-async", "Idempotency-Key": uuid4().hex}
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(requests.RequestException):
            answer = post(headers)
            if answer.status_code == 202:
                return str(answer.headers["Framebox-Job"])
            assert answer.status_code in (502, 503), answer.text
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_kill(instance: WebInstance, armed: Armed, point: str, send: Callable[[], str]) -> None:
    before = job_ids(instance)
    mark = armed.arm(point)
    job_id = send()
    assert not mark.exists()
    assert instance.end_of(job_id)["state"] == "succeeded"
    answer = requests.get(f"{instance.url}/v1/jobs/{job_id}/result", timeout=30)
    assert answer.content == b"".join(document(FRAMES))
    assert job_ids(instance) - before == {job_id}
    wait_until(lambda: not leftovers(instance))


@pytest.mark.parametrize("point", sorted(OF_RAW_BODIES | OF_ALL))
def test_a_kill_while_a_raw_body_becomes_a_job(instance: WebInstance, armed: Armed, point: str) -> None:
    def post(headers: dict[str, str]) -> requests.Response:
        headers = headers | {"Content-Type": "video/mp4"}
        return requests.post(f"{instance.url}/v1/detections", VIDEO, headers=headers, timeout=60)

    check_kill(instance, armed, point, lambda: post_until_accepted(post))


@pytest.mark.parametrize("point", sorted(OF_FORMS | OF_ALL))
def test_a_kill_while_a_form_becomes_a_job(instance: WebInstance, armed: Armed, point: str) -> None:
    def post(headers: dict[str, str]) -> requests.Response:
        files = {"video": VIDEO}
        return requests.post(f"{instance.url}/v1/detections", files=files, headers=headers, timeout=60)

    check_kill(instance, armed, point, lambda: post_until_accepted(post))


@pytest.mark.parametrize("point", sorted(OF_PATHS))
def test_a_kill_before_the_record_of_a_named_video(instance: WebInstance, armed: Armed, point: str) -> None:
    def post(headers: dict[str, str]) -> requests.Response:
        source = {"path": "video"}
        return requests.post(f"{instance.url}/v1/detections", json=source, headers=headers, timeout=60)

    check_kill(instance, armed, point, lambda: post_until_accepted(post))


@pytest.mark.parametrize("point", sorted(OF_RESUMABLE_UPLOADS))
def test_a_kill_while_a_video_comes_in_parts(instance: WebInstance, armed: Armed, point: str) -> None:
    check_kill(instance, armed, point, lambda: PartsClient(instance.url).send(VIDEO, parts=2))


def test_every_place_on_the_web_side_has_a_test() -> None:
    places = {name for name, module in points_in_source().items() if module in OF_THE_WEB_SIDE}
    assert places == OF_RAW_BODIES | OF_FORMS | OF_PATHS | OF_ALL | OF_RESUMABLE_UPLOADS


class PartsClient:
    """Sends a video in parallel parts (tus), each request again and again until it is answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._uploads = f"{url}/v1/uploads"

    def send(self, video: bytes, *, parts: int) -> str:
        """Return the id of the job that the video became."""
        cuts = [len(video) * number // parts for number in range(parts + 1)]
        pieces = [video[start:end] for start, end in pairwise(cuts)]
        addresses = [self._send_part(piece) for piece in pieces]
        detect = f"detect {b64encode(b'attach=false').decode()}"
        headers = {"Upload-Concat": f"final;{' '.join(addresses)}", "Upload-Metadata": detect}
        return str(self._ask("POST", self._uploads, headers).headers["Framebox-Job"])

    def _send_part(self, piece: bytes) -> str:
        headers = {"Upload-Concat": "partial", "Upload-Length": str(len(piece))}
        address = self._url + self._ask("POST", self._uploads, headers).headers["Location"]
        while (offset := int(self._ask("HEAD", address, {}).headers["Upload-Offset"])) < len(piece):
            with contextlib.suppress(AssertionError):  # then it is asked how far it came
                self._ask("PATCH", address, {"Upload-Offset": str(offset)}, piece[offset:], seconds=0)
        return address

    def _ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        data: bytes | None = None,
        seconds: float = SECONDS,
    ) -> requests.Response:
        deadline = time.monotonic() + seconds
        sent = headers | {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
        while True:
            with contextlib.suppress(requests.RequestException):
                answer = requests.request(method, url, headers=sent, data=data, timeout=30)
                if answer.ok:
                    return answer
                assert answer.status_code in (409, 423, 502, 503), answer.text
            assert time.monotonic() < deadline
            time.sleep(0.1)
