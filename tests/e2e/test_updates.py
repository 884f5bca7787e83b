"""A stop in the middle of a job, and a start after it, cost nothing that was done."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from instance import CHECKOUT, Instance, repeat_clip

OPTIONS = {"model": "hog-people", "max_side": 240}
SEGMENT_FRAMES = 16


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("updates") / "data"
    with Instance(folder, segment_frames=SEGMENT_FRAMES) as instance:
        yield instance


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 frames with walkers that the detector finds, one segment each time that the clip is repeated."""
    return repeat_clip(CHECKOUT / "docs" / "walkers.mp4", tmp_path_factory.mktemp("clips") / "v.mp4", times=5)


@pytest.fixture(scope="module")
def undisturbed(instance: Instance, video: Path) -> bytes:
    return instance.post(video, **OPTIONS).content


def begin(instance: Instance, video: Path) -> str:
    """Post a job and return when two of its parts are there."""
    job_id = instance.post_async(video, **OPTIONS)
    parts = instance.data / "jobs" / job_id / "parts"
    instance.wait(lambda: parts.exists() and len(list(parts.glob("*.part"))) >= 2, 60, "two parts")
    return job_id


def segments_finished(instance: Instance, job_id: str) -> Counter[int]:
    """How often each segment of the job was finished, by the log."""
    lines = [line for line in instance.log.read_text().splitlines() if '"segment finished"' in line]
    return Counter(entry["segment"] for entry in map(json.loads, lines) if entry["job_id"] == job_id)


def assert_each_segment_once(instance: Instance, job_id: str) -> None:
    finished = segments_finished(instance, job_id)
    assert len(finished) == instance.report(job_id)["progress"]["segments_total"]
    assert set(finished.values()) == {1}


def test_an_engine_told_to_stop_finishes_what_it_has_begun(
    instance: Instance, video: Path, undisturbed: bytes
) -> None:
    job_id = begin(instance, video)
    engine = instance.engine()
    engine.terminate()
    psutil.wait_procs([engine], timeout=30)
    assert instance.wait_for_end(job_id)["state"] == "succeeded"
    assert instance.engine().pid != engine.pid
    assert instance.result(job_id) == undisturbed
    assert_each_segment_once(instance, job_id)


def test_a_new_web_side_leaves_the_job_alone_and_tells_who_waits_where_to_ask(
    instance: Instance, video: Path, undisturbed: bytes
) -> None:
    answers: list[requests.Response] = []
    key = {"Idempotency-Key": "an-update-comes"}
    client = threading.Thread(target=lambda: answers.append(instance.post(video, key, **OPTIONS)))
    client.start()
    running = instance.wait(lambda: _jobs(instance, "running"), 60, "a running job")
    engine = instance.engine()
    (master,) = [found for found in instance.find("gunicorn") if found.ppid() == instance.supervisor_pid]
    master.terminate()
    client.join(60)
    (answer,) = answers
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{running[0]['id']}"
    instance.wait(instance.is_ready, 60, "new workers")
    assert instance.post(video, key, **OPTIONS).content == undisturbed
    assert instance.engine() == engine
    assert_each_segment_once(instance, running[0]["id"])


def _jobs(instance: Instance, state: str) -> list[dict[str, str]]:
    listing = requests.get(f"{instance.url}/v1/jobs", params={"state": state}, timeout=30).json()
    jobs: list[dict[str, str]] = listing["jobs"]
    return jobs


def test_a_job_goes_on_when_the_whole_instance_was_stopped_and_started_again(
    instance: Instance, video: Path, undisturbed: bytes
) -> None:
    job_id = begin(instance, video)
    instance.stop()
    instance.start()
    assert instance.wait_for_end(job_id)["state"] == "succeeded"
    assert instance.result(job_id) == undisturbed
    assert_each_segment_once(instance, job_id)
