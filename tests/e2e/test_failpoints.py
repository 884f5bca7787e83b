"""A kill at any durable step loses nothing, does nothing twice, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from failpoints import OF_THE_COURIER, OF_THE_WEB_SIDE, Armed, points_in_source
from instance import Instance, make_clip

SECONDS = 60.0

# Not met by a job that is posted, runs and is fetched: it has a test of its own.
ELSEWHERE = {"job_forgotten"}
POINTS = [
    name
    for name, module in sorted(points_in_source().items())
    if module not in OF_THE_WEB_SIDE | OF_THE_COURIER and name not in ELSEWHERE
]


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Armed:
    return Armed(tmp_path_factory.mktemp("armed") / "failpoints")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, armed: Armed, video: Path) -> Iterator[Instance]:
    settings = {
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


def post_until_accepted(instance: Instance, video: Path) -> str:
    """Post with a key again and again, as a client does whose connection broke; return the job's id."""
    headers = {"Prefer": "respond-async", "Idempotency-Key": uuid4().hex}
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            answer = instance.post(video, headers, attach="false")
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


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_durable_step_changes_nothing(
    instance: Instance, armed: Armed, video: Path, undisturbed: bytes, point: str
) -> None:
    instance.wait(instance.is_ready, SECONDS, "ready")
    before = job_ids(instance)
    mark = armed.arm(point)
    job_id = post_until_accepted(instance, video)
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
