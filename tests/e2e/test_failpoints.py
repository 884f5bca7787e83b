"""A kill at any durable step loses nothing, does nothing twice, and leaves nothing behind."""

from __future__ import annotations

import ast
import contextlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from instance import CHECKOUT, Instance, make_clip

SECONDS = 60.0


def points_in_source() -> list[str]:
    """The names of all calls of `fail_point`; fails if one is no literal or stands for two places."""
    names = []
    for module in sorted((CHECKOUT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fail_point":
                (name,) = node.args
                assert isinstance(name, ast.Constant), module
                assert isinstance(name.value, str), module
                names.append(name.value)
    assert len(names) == len(set(names))
    return sorted(names)


# Not met by a job that is posted, runs and is fetched: each has a test of its own.
ELSEWHERE = {"job_forgotten", "empty_job_made", "upload_received"}
OF_UPLOADS = {
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
OF_THE_COURIER = {  # tests/integration/test_courier.py
    "fetch_linked",
    "fetch_completed",
    "delivery_begun",
    "delivery_answered",
}


class Armed:
    """The folder of armed places."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def arm(self, name: str) -> Path:
        path = self.folder / name
        path.touch()
        return path


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Armed:
    return Armed(tmp_path_factory.mktemp("armed") / "failpoints")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, armed: Armed, video: Path) -> Iterator[Instance]:
    settings = {
        "ingest": video.parent,
        "segment_frames": 50,
        "failpoints": armed.folder,
        "attach": "true",
        "model": "none",
    }
    with Instance(tmp_path_factory.mktemp("failpoints") / "data", **settings) as instance:
        yield instance


@pytest.fixture(autouse=True)
def steady(instance: Instance) -> None:
    """Have no program remember the kills before: it would wait up to five seconds before it starts again."""
    for starts in (instance.data / "run").glob("*.starts"):
        starts.unlink()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "v.mp4", frames=200, size="160x120")


@pytest.fixture(scope="module")
def undisturbed(instance: Instance, video: Path) -> bytes:
    return instance.post(video, min_score=0.99).content


Post = Callable[[dict[str, str]], requests.Response]


def post_until_accepted(post: Post, instance: Instance, key: str) -> str:
    """Post with a key again and again, as a client does whose connection broke; return the job's id."""
    headers = {"Prefer": "respond-async", "Idempotency-Key": key}
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            answer = post(headers)
        except requests.RequestException:
            continue
        if answer.status_code == 202:
            return str(answer.headers["Framebox-Job"])
        assert answer.status_code in (502, 503), answer.text
        time.sleep(0.1)
    raise AssertionError(f"not accepted\n{instance.tail()}")


def job_ids(instance: Instance) -> set[str]:
    answer = requests.get(f"{instance.url}/v1/jobs?limit=200", timeout=30)
    return {job["id"] for job in answer.json()["jobs"]}


def leftovers(instance: Instance, job_id: str) -> list[str]:
    data = instance.data
    kept = ("result.pairs", "result.pts")
    found = [path.name for path in (data / "jobs" / job_id).iterdir() if path.name not in kept]
    unknown = {path.name for path in (data / "jobs").iterdir()} - job_ids(instance)
    return found + [path.name for path in (data / "incoming").iterdir()] + sorted(unknown)


NOT_HERE = ELSEWHERE | OF_UPLOADS | OF_THE_COURIER


@pytest.mark.parametrize("point", [name for name in points_in_source() if name not in NOT_HERE])
def test_a_kill_at_a_durable_step_changes_nothing(
    instance: Instance, armed: Armed, video: Path, undisturbed: bytes, point: str
) -> None:
    check_kill(
        instance, armed, point, undisturbed, lambda headers: instance.post(video, headers, attach="false")
    )


def test_a_kill_before_the_record_of_a_named_video_changes_nothing(
    instance: Instance, armed: Armed, video: Path, undisturbed: bytes
) -> None:
    def post(headers: dict[str, str]) -> requests.Response:
        url = f"{instance.url}/v1/detections?attach=false"
        return requests.post(url, json={"path": video.name}, headers=headers, timeout=60)

    check_kill(instance, armed, "empty_job_made", undisturbed, post)


def test_a_kill_when_a_form_has_come_in_changes_nothing(
    instance: Instance, armed: Armed, video: Path, undisturbed: bytes
) -> None:
    def post(headers: dict[str, str]) -> requests.Response:
        with video.open("rb") as file:
            url = f"{instance.url}/v1/detections?attach=false"
            return requests.post(url, files={"video": file}, headers=headers, timeout=60)

    check_kill(instance, armed, "upload_received", undisturbed, post)


@pytest.mark.parametrize("point", sorted(OF_UPLOADS))
def test_a_kill_while_a_video_comes_in_parts_changes_nothing(
    instance: Instance, armed: Armed, video: Path, undisturbed: bytes, point: str
) -> None:
    instance.wait(instance.is_ready, SECONDS, "ready")
    before = job_ids(instance)
    mark = armed.arm(point)
    job_id = PartsClient(instance).send(video.read_bytes(), parts=2)
    assert not mark.exists()
    assert instance.wait_for_end(job_id)["state"] == "succeeded"
    assert instance.result(job_id) == undisturbed
    assert job_ids(instance) - before == {job_id}
    instance.wait(lambda: not leftovers(instance, job_id), 20, f"a tidy folder after {point}")


class PartsClient:
    """Sends a video in parallel parts (tus), each request again and again until it is answered."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._uploads = f"{instance.url}/v1/uploads"

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
        address = self._instance.url + self._ask("POST", self._uploads, headers).headers["Location"]
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
            assert time.monotonic() < deadline, self._instance.tail()
            time.sleep(0.1)


def check_kill(instance: Instance, armed: Armed, point: str, undisturbed: bytes, post: Post) -> None:
    instance.wait(instance.is_ready, SECONDS, "ready")
    before = job_ids(instance)
    mark = armed.arm(point)
    job_id = post_until_accepted(post, instance, uuid4().hex)
    instance.wait(lambda: not mark.exists(), SECONDS, f"a process at {point}")
    instance.wait(instance.is_ready, SECONDS, "ready again")
    assert instance.wait_for_end(job_id)["state"] == "succeeded"
    assert instance.result(job_id) == undisturbed
    assert job_ids(instance) - before == {job_id}
    instance.wait(lambda: not leftovers(instance, job_id), 20, f"a tidy folder after {point}")


def test_a_worker_killed_while_it_converts_an_answer_leaves_no_file(
    instance: Instance, armed: Armed, video: Path
) -> None:
    instance.wait(instance.is_ready, SECONDS, "ready")
    job_id = instance.post_async(video, attach="false")
    instance.wait_for_end(job_id)
    address = f"{instance.url}/v1/jobs/{job_id}/result?format=csv"
    mark = armed.arm("file_written")
    with contextlib.suppress(requests.RequestException):
        requests.get(address, timeout=30)
    assert not mark.exists()
    instance.wait(lambda: not leftovers(instance, job_id), 20, "nothing of the conversion")
    instance.wait(lambda: requests.get(address, timeout=30).status_code == 200, SECONDS, "another conversion")


def test_a_kill_between_a_jobs_record_and_its_files_leaves_no_files(tmp_path: Path, video: Path) -> None:
    """What retention was removing is removed by the next engine."""
    failpoints = Armed(tmp_path / "armed")
    settings = {"failpoints": failpoints.folder, "model": "none", "keep_days": 1e-5}
    with Instance(tmp_path / "data", **settings) as instance:
        mark = failpoints.arm("job_forgotten")
        instance.post_async(video)
        instance.wait(lambda: not mark.exists(), SECONDS, "an engine that forgets a job")
        instance.wait(lambda: not job_ids(instance), SECONDS, "no record")
        instance.wait(lambda: not [*(instance.data / "jobs").iterdir()], SECONDS, "no files")
