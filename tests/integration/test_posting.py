"""Posting, waiting, following and fetching, through the real nginx and gunicorn; the engine is a double."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from double_engine import document
from raw_http import post_head
from waiting import wait_until
from web_instance import WebInstance, running_instance

from app.jobs.watcher import POLL_SECONDS
from app.settings import Settings
from app.storage.locks import held_folder

VIDEO = {"Content-Type": "video/mp4"}
ASYNC = VIDEO | {"Prefer": "respond-async"}
SECONDS = 20.0


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("posting")) as instance:
        yield instance


class Hold:
    """A file for whose appearance a job of the double engine waits."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "go"

    def orders(self, **orders: Any) -> bytes:
        return json.dumps({"hold": str(self.path), **orders}).encode()

    def release(self) -> None:
        self.path.touch()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    hold = Hold(tmp_path)
    yield hold
    hold.release()


def _post(
    instance: WebInstance, data: Any, headers: dict[str, str] | None = None, query: str = ""
) -> requests.Response:
    return requests.post(
        f"{instance.url}/v1/detections{query}", data=data, headers=headers or VIDEO, timeout=SECONDS
    )


def _get(instance: WebInstance, path: str, **options: Any) -> requests.Response:
    return requests.get(f"{instance.url}{path}", timeout=SECONDS, **options)


def _assert_is_document(answer: requests.Response, frames: int) -> None:
    expected = b"".join(document(frames))
    assert answer.status_code == 200, answer.text
    assert answer.content == expected
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Framebox-Frames"] == str(frames)
    assert answer.headers["Framebox-Complete"] == "true"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(expected).hexdigest()}"'
    assert answer.headers["Repr-Digest"].startswith("sha-256=:")
    assert f'</v1/jobs/{answer.headers["Framebox-Job"]}>; rel="describedby"' in answer.headers["Link"]
    assert answer.headers["X-Request-ID"]
    for name in ("ETag", "Link", "X-Request-ID", "Framebox-Job"):
        assert answer.raw.headers.getlist(name) == [answer.headers[name]]


def test_a_raw_body_is_answered_with_its_document(instance: WebInstance):
    _assert_is_document(_post(instance, b'{"frames": 3}'), 3)


def test_a_form_is_answered_with_its_document(instance: WebInstance):
    answer = requests.post(
        f"{instance.url}/v1/detections", files={"video": ("clip.mp4", b'{"frames": 4}')}, timeout=SECONDS
    )
    _assert_is_document(answer, 4)
    assert instance.report(answer.headers["Framebox-Job"])["source"]["name"] == "clip.mp4"


def test_a_body_of_unknown_length_is_answered_with_its_document(instance: WebInstance):
    _assert_is_document(_post(instance, iter([b'{"fra', b'mes": 5}'])), 5)


def test_a_body_without_a_type_is_taken_for_the_video(instance: WebInstance, tmp_path: Path):
    video = tmp_path / "video"
    video.write_bytes(b'{"frames": 2}')
    command = ["curl", "-s", "-T", str(video), "-X", "POST", f"{instance.url}/v1/detections"]
    assert subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout == b"".join(
        document(2)
    )


@pytest.mark.parametrize("kind", ["raw", "form", "chunked"])
def test_large_uploads_arrive_byte_for_byte(instance: WebInstance, kind: str):
    data = os.urandom(5 * 1024 * 1024 + 12345) * 4
    url = f"{instance.url}/v1/detections"
    if kind == "form":
        answer = requests.post(url, files={"video": ("v", data)}, timeout=SECONDS)
    else:
        body = data if kind == "raw" else (data[at : at + 77_777] for at in range(0, len(data), 77_777))
        answer = requests.post(url, data=body, headers=VIDEO, timeout=SECONDS)
    _assert_is_document(answer, 3)
    source = instance.report(answer.headers["Framebox-Job"])["source"]
    assert (source["bytes"], source["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_options_and_the_model_are_kept_with_the_job(instance: WebInstance):
    job = _post(instance, b"{}", ASYNC, "?min_score=0.5&labels=cat,dog&model=other").json()
    assert job["options"] == {"model": "other", "min_score": 0.5, "labels": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("document_format", "media_type"), [("csv", "text/csv; charset=utf-8"), ("boxes", "application/json")]
)
def test_the_answer_comes_in_the_form_that_was_asked_for(
    instance: WebInstance, document_format: str, media_type: str
):
    answer = _post(instance, b'{"frames": 2}', query=f"?format={document_format}")
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["ETag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert b"[[" not in answer.content or document_format == "boxes"


def test_documents_that_wait_to_be_converted_take_few_threads(tmp_path: Path):
    with running_instance(tmp_path, HTTP_WORKERS="1", HTTP_THREADS="16") as instance:
        job_id = _post(instance, b"{}", ASYNC).json()["id"]
        wait_until(lambda: instance.report(job_id)["state"] == "succeeded")
        result = f"{instance.url}/v1/jobs/{job_id}/result"

        def status(_number: int) -> int:
            return requests.get(result, params={"format": "csv"}, timeout=SECONDS).status_code

        with ThreadPoolExecutor(2) as clients:
            with held_folder(instance.folder.job(job_id), deadline=time.monotonic()) as is_held:
                assert is_held, "so that a conversion waits"
                asked = [clients.submit(status, number) for number in range(2)]
                wait_until(lambda: any(answer.done() for answer in asked))
                assert requests.get(result, timeout=SECONDS).status_code == 200, "the pairs need no place"
            assert sorted(answer.result() for answer in asked) == [200, 503]


def test_a_failed_video_is_answered_with_its_problem(instance: WebInstance):
    answer = _post(instance, b'{"problem": "no_video_stream"}')
    assert (answer.status_code, answer.json()["code"]) == (422, "no_video_stream")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["instance"] == f"/v1/jobs/{answer.headers['Framebox-Job']}"


def test_respond_async_is_answered_at_once(instance: WebInstance, hold: Hold):
    answer = _post(instance, hold.orders(), ASYNC)
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    hold.release()
    wait_until(lambda: instance.report(answer.json()["id"])["state"] == "succeeded")


def test_a_wait_that_is_too_short_is_answered_with_the_report(instance: WebInstance, hold: Hold):
    began = time.monotonic()
    answer = _post(instance, hold.orders(), VIDEO | {"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert time.monotonic() - began >= 1
    assert answer.headers["Preference-Applied"] == "wait=1"


def test_a_wait_that_is_long_enough_is_answered_with_the_document(instance: WebInstance):
    answer = _post(instance, b'{"frames": 3}', VIDEO | {"Prefer": "wait=20"})
    _assert_is_document(answer, 3)
    assert answer.headers["Preference-Applied"] == "wait=20"


def test_a_result_is_sent_in_ranges_on_conditions_and_as_a_head(instance: WebInstance):
    job_id = _post(instance, b'{"frames": 100}').headers["Framebox-Job"]
    address, whole = f"/v1/jobs/{job_id}/result", b"".join(document(100))
    full = _get(instance, address)
    _assert_is_document(full, 100)
    part = _get(instance, address, headers={"Range": "bytes=100-199", "If-Range": full.headers["ETag"]})
    assert (part.status_code, part.content) == (206, whole[100:200])
    stale = _get(instance, address, headers={"Range": "bytes=100-199", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, whole)
    assert _get(instance, address, headers={"If-None-Match": full.headers["ETag"]}).status_code == 304
    head = requests.head(f"{instance.url}{address}", timeout=SECONDS)
    assert (head.headers["Content-Length"], head.headers["ETag"]) == (str(len(whole)), full.headers["ETag"])
    beyond = _get(instance, address, headers={"Range": "bytes=999999-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")


def test_an_answer_is_woken_and_not_polled_for(instance: WebInstance):
    seconds = []
    for _ in range(5):  # on a busy machine one of them may be slow
        began = time.monotonic()
        _assert_is_document(_post(instance, b'{"frames": 3}'), 3)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < POLL_SECONDS / 2


def test_events_tell_the_progress_as_it_happens(instance: WebInstance, hold: Hold):
    job_id = _post(instance, hold.orders(frames=7, steps=5), ASYNC).json()["id"]
    with _get(instance, f"/v1/jobs/{job_id}/events", stream=True) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = stream.iter_lines(chunk_size=1)
        first = next(line for line in lines if line.startswith(b"event:"))
        assert first == b"event: progress"  # and the job still waits: nothing on the way holds events back
        hold.release()
        rest = [*lines]
    kinds = [line for line in rest if line.startswith(b"event:")]
    assert kinds[-1] == b"event: end"
    last_id = [line.removeprefix(b"id: ").decode() for line in rest if line.startswith(b"id:")][-1]
    again = _get(instance, f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last_id})
    assert again.status_code == 204


def test_a_running_job_is_cancelled_and_who_waits_for_it_is_told(instance: WebInstance, hold: Hold):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(_post, instance, hold.orders())
        wait_until(lambda: _get(instance, "/v1/jobs?state=running").json()["jobs"])
        job_id = _get(instance, "/v1/jobs?state=running").json()["jobs"][0]["id"]
        cancelled = requests.delete(f"{instance.url}/v1/jobs/{job_id}", timeout=SECONDS)
        assert cancelled.status_code == 202
        answer = waiting.result(timeout=SECONDS)
    assert (answer.status_code, answer.json()["code"]) == (409, "job_cancelled")
    assert requests.delete(f"{instance.url}/v1/jobs/{job_id}", timeout=SECONDS).status_code == 204
    assert not instance.folder.job(job_id).exists()


def test_many_callers_wait_at_once(instance: WebInstance):
    with ThreadPoolExecutor(40) as threads:
        answers = [*threads.map(lambda number: _post(instance, b'{"frames": %d}' % number), range(1, 41))]
    for frames, answer in enumerate(answers, start=1):
        _assert_is_document(answer, frames)


def test_metrics_are_the_sum_over_all_workers(instance: WebInstance):
    def count() -> float:
        label = 'framebox_http_requests_total{method="GET",route="/v1/models",status="200"} '
        lines = _get(instance, "/metrics").text.splitlines()
        return sum(float(line.removeprefix(label)) for line in lines if line.startswith(label))

    before = count()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: _get(instance, "/v1/models"), range(40)))
    assert count() == before + 40


def test_log_lines_are_json_and_carry_the_ids(instance: WebInstance):
    answer = _post(instance, b'{"frames": 2}')
    request_id, job_id = answer.headers["X-Request-ID"], answer.headers["Framebox-Job"]

    def lines() -> list[dict[str, Any]]:
        found = (json.loads(line) for line in instance.log("gunicorn").splitlines())
        return [line for line in found if line.get("request_id") == request_id]

    wait_until(lines)
    (line,) = lines()
    assert (line["event"], line["job_id"], line["status"]) == ("request", job_id, 200)
    asked = (line["method"], line["route"], line["path"], line["client"])
    assert asked == ("POST", "/v1/detections", "/v1/detections", "127.0.0.1")


def _has_jobs(instance: WebInstance, count: int) -> bool:
    return len(_get(instance, "/v1/jobs").json()["jobs"]) == count


def test_a_client_that_leaves_while_it_waits_frees_its_thread_and_its_job_goes_on(tmp_path: Path):
    with running_instance(tmp_path, HTTP_WORKERS="1", HTTP_THREADS="8") as instance:
        hold = Hold(tmp_path)
        head = post_head("", "video/mp4", f"Content-Length: {len(hold.orders())}")
        for number in range(1, 25):  # three times as many as there are threads
            with socket.create_connection(("127.0.0.1", instance.port), timeout=SECONDS) as connection:
                connection.sendall(head + b"\r\n" + hold.orders())
                wait_until(functools.partial(_has_jobs, instance, number))
        hold.release()
        wait_until(lambda: len(_get(instance, "/v1/jobs?state=succeeded").json()["jobs"]) == 24)


def test_a_worker_that_is_told_to_stop_answers_who_waits_with_the_report(tmp_path: Path):
    with running_instance(tmp_path) as instance, ThreadPoolExecutor(1) as threads:
        hold = Hold(tmp_path)
        waiting = threads.submit(_post, instance, hold.orders())
        wait_until(lambda: _get(instance, "/v1/jobs?state=running").json()["jobs"])
        instance.stop("gunicorn")
        answer = waiting.result(timeout=SECONDS)
        assert answer.status_code == 202
        instance.start_gunicorn()
        instance.wait_until_ready()
        hold.release()
        wait_until(lambda: instance.report(answer.json()["id"])["state"] == "succeeded")
        _assert_is_document(_get(instance, answer.headers["Location"] + "/result"), 3)


def test_a_worker_that_is_told_to_stop_ends_its_event_streams(tmp_path: Path):
    with running_instance(tmp_path) as instance:
        job_id = _post(instance, Hold(tmp_path).orders(), ASYNC).json()["id"]
        with _get(instance, f"/v1/jobs/{job_id}/events", stream=True) as stream:
            lines = stream.iter_lines(chunk_size=1)
            assert any(line.startswith(b"event:") for line in lines)
            began = time.monotonic()
            instance.programs["gunicorn"].terminate()
            assert not [line for line in lines if line.startswith(b"event: end")]
            assert time.monotonic() - began < 8


def test_a_killed_worker_loses_no_job_and_leaves_no_upload(tmp_path: Path):
    with running_instance(tmp_path, HTTP_WORKERS="1") as instance, ThreadPoolExecutor(1) as threads:
        hold = Hold(tmp_path)
        waiting = threads.submit(_post, instance, hold.orders())
        wait_until(lambda: _get(instance, "/v1/jobs?state=running").json()["jobs"])
        job_id = _get(instance, "/v1/jobs").json()["jobs"][0]["id"]
        half = post_head("", "video/mp4", "Transfer-Encoding: chunked") + b"\r\nfff\r\n" + bytes(500)
        with socket.create_connection(("127.0.0.1", instance.port), timeout=SECONDS) as upload:
            upload.sendall(half)
            wait_until(lambda: [*instance.folder.incoming.iterdir()])
            (worker,) = psutil.Process(instance.programs["gunicorn"].pid).children()
            worker.send_signal(signal.SIGKILL)
            answer = waiting.result(timeout=SECONDS)
            assert (answer.status_code, answer.json()["code"]) == (502, "bad_gateway")
        instance.wait_until_ready()
        assert not [*instance.folder.incoming.iterdir()]
        hold.release()
        wait_until(lambda: instance.report(job_id)["state"] == "succeeded")
        _assert_is_document(_get(instance, f"/v1/jobs/{job_id}/result"), 3)


def test_uploads_are_written_to_disk_once_and_never_held(tmp_path: Path):
    """What all processes write while an upload comes in is the upload, and their memory stays as it was."""
    size = 256 * 1024 * 1024
    with running_instance(tmp_path, HTTP_WORKERS="1") as instance:
        processes = [
            process for program in ("nginx", "gunicorn") for process in _tree(instance.programs[program].pid)
        ]
        memory_before = sum(process.memory_info().rss for process in processes)
        written_before = sum(process.io_counters().write_chars for process in processes)
        peak = _Peak(processes)
        with peak:
            answer = _post(instance, (bytes(1024 * 1024) for _ in range(size >> 20)), ASYNC)
        assert answer.json()["source"]["bytes"] == size
        written = sum(process.io_counters().write_chars for process in processes) - written_before
        assert size <= written - size < size * 1.02, "nginx passes it on once, the application writes it once"
        assert peak.bytes - memory_before < 40 * 1024 * 1024


def test_as_many_uploads_as_nginx_lets_in_stay_within_the_memory_budget(tmp_path: Path):
    data, settings = os.urandom(6 * 1024 * 1024), Settings()
    uploads = settings.http_threads // 2  # forms, which the application reads
    all_of_them = {"CLIENT_LONG_REQUESTS": str(uploads)}
    with running_instance(tmp_path, **all_of_them) as instance, ThreadPoolExecutor(uploads) as threads:
        workers = psutil.Process(instance.programs["gunicorn"].pid).children()
        answers = threads.map(lambda _: _post_form(instance, data).status_code, range(uploads))
        assert set(answers) == {202}
        used = sum(worker.memory_info().rss for worker in workers)  # what was freed stays with the process
        assert used < settings.memory_budgets()["http workers"]


def _post_form(instance: WebInstance, data: bytes) -> requests.Response:
    url, later = f"{instance.url}/v1/detections", {"Prefer": "respond-async"}
    return requests.post(url, files={"video": ("v", data)}, headers=later, timeout=SECONDS)


class _Peak:
    """The largest memory of some processes together, sampled by a thread."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self.bytes = 0
        self._processes = processes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, sum(process.memory_info().rss for process in self._processes))


def _tree(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
