"""kill -9 of any process in the middle of a job changes nothing that a client can see."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from instance import CHECKOUT, Instance, repeat_clip
from killing import kill_all

OPTIONS = {"model": "hog-people", "max_side": 240}  # small pictures, soon done


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with Instance(tmp_path_factory.mktemp("kills") / "data", segment_frames=50) as instance:
        yield instance


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 frames with walkers that the detector finds."""
    return repeat_clip(CHECKOUT / "docs" / "walkers.mp4", tmp_path_factory.mktemp("clips") / "v.mp4", times=5)


@pytest.fixture(scope="module")
def undisturbed(instance: Instance, video: Path) -> bytes:
    answer = instance.post(video, **OPTIONS)
    pairs = answer.json()
    assert len(pairs) == 480
    assert sum(bool(boxes) for _, boxes in pairs) > 150
    return answer.content


def wait_for_parts(instance: Instance, job_id: str, count: int) -> None:
    parts = instance.data / "jobs" / job_id / "parts"
    instance.wait(lambda: parts.exists() and len(list(parts.glob("*.part"))) >= count, 60, f"{count} parts")


class Waiting:
    """A client that waits for its answer in a thread."""

    def __init__(self, instance: Instance, video: Path) -> None:
        self.answer: requests.Response | None = None
        self.fault: Exception | None = None
        self._thread = threading.Thread(target=self._post, args=(instance, video))
        before = {job["id"] for job in jobs(instance)}
        self._thread.start()
        new = instance.wait(lambda: {job["id"] for job in jobs(instance)} - before, 30, "a new job")
        (self.job_id,) = new

    def _post(self, instance: Instance, video: Path) -> None:
        try:
            self.answer = instance.post(video, **OPTIONS)
        except requests.RequestException as fault:
            self.fault = fault

    def join(self) -> None:
        self._thread.join(300)


def jobs(instance: Instance) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = requests.get(f"{instance.url}/v1/jobs", timeout=30).json()["jobs"]
    return listed


def assert_nothing_left(instance: Instance, job_id: str) -> None:
    folder = instance.data / "jobs" / job_id
    kept = ["result.pairs", "result.pts"]
    instance.wait(lambda: sorted(path.name for path in folder.iterdir()) == kept, 30, "a tidy folder")
    instance.wait(lambda: not instance.decoders(), 30, "decoder children to end")
    assert list((instance.data / "incoming").iterdir()) == []


def test_a_killed_engine_goes_on_from_the_finished_parts(
    instance: Instance, video: Path, undisturbed: bytes
) -> None:
    client = Waiting(instance, video)
    wait_for_parts(instance, client.job_id, 3)
    parts = instance.data / "jobs" / client.job_id / "parts"
    engine = instance.engine()
    family = engine.children(recursive=True)
    engine.kill()
    finished = {path.name: path.stat().st_ino for path in parts.glob("*.part")}
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, "the engine's children outlived it"
    client.join()
    assert client.answer is not None, client.fault
    assert client.answer.content == undisturbed
    assert finished
    assert_nothing_left(instance, client.job_id)


def test_a_killed_decoder_is_replaced(instance: Instance, video: Path, undisturbed: bytes) -> None:
    client = Waiting(instance, video)
    wait_for_parts(instance, client.job_id, 1)
    for _ in range(3):
        (child, *_) = instance.wait(instance.decoders, 30, "a decoder child")
        child.kill()
        psutil.wait_procs([child], timeout=10)
    client.join()
    assert client.answer is not None, client.fault
    assert client.answer.content == undisturbed
    assert client.answer.headers["Framebox-Complete"] == "true"
    assert_nothing_left(instance, client.job_id)


def test_a_killed_http_worker_loses_the_connection_but_not_the_job(
    instance: Instance, video: Path, undisturbed: bytes
) -> None:
    client = Waiting(instance, video)
    wait_for_parts(instance, client.job_id, 1)
    kill_all(instance.http_workers())
    client.join()
    instance.wait(instance.is_ready, 30, "new workers")
    assert instance.wait_for_end(client.job_id)["state"] == "succeeded"
    assert instance.result(client.job_id) == undisturbed
    assert_nothing_left(instance, client.job_id)


def test_a_killed_nginx_comes_back(instance: Instance, video: Path, undisturbed: bytes) -> None:
    client = Waiting(instance, video)
    wait_for_parts(instance, client.job_id, 1)
    (master,) = [process for process in instance.find("nginx") if process.ppid() == instance.supervisor_pid]
    workers = master.children()
    master.kill()
    client.join()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "the orphans, which answer too, were not ended"
    instance.wait(instance.is_ready, 60, "a new nginx")
    assert instance.wait_for_end(client.job_id)["state"] == "succeeded"
    assert instance.result(client.job_id) == undisturbed
