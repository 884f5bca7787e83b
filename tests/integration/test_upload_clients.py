"""Every client that the documentation names, against the real nginx and gunicorn."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from browser import running_browser, send_form
from double_engine import document
from killing import kill_all
from waiting import wait_until
from web_instance import CHECKOUT, WebInstance, running_instance

SECONDS = 60.0
NODE = Path(sys.executable).with_name("node")
TUS_JS = Path(__file__).with_name("tus_js")
VIDEO = b'{"frames": 5}'.ljust(3_000_001)  # orders for the stand-in engine, which passes over the spaces
DETECT = {"filename": "clip.mp4", "detect": ""}

TUSPY = """
import json, sys
from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

order = json.loads(sys.argv[1])
uploader = TusClient(order["endpoint"]).uploader(
    order["file"], store_url=True, url_storage=FileStorage(order["storage"]), **order["options"]
)
uploader.upload()
job = uploader.request.response_headers.get("framebox-job") if uploader.request else None
print(json.dumps({"url": uploader.url, "job": job}))
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("clients")) as instance:
        yield instance


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(VIDEO)
    return path


# ---- the clients; each sends the video and returns the answer


def curl(instance: WebInstance, *arguments: str, stdin: bytes | None = None) -> bytes:
    command = ["curl", "-sS", "--fail-with-body", *arguments, f"{instance.url}/v1/detections"]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=SECONDS, check=True).stdout


def curl_raw(instance: WebInstance, video: Path) -> bytes:
    return curl(instance, "-X", "POST", "-H", "Content-Type: video/mp4", "-T", str(video))


def curl_multipart(instance: WebInstance, video: Path) -> bytes:
    return curl(instance, "-F", f"video=@{video}")


def curl_chunked(instance: WebInstance, video: Path) -> bytes:
    arguments = ("-X", "POST", "-H", "Content-Type: video/mp4", "-H", "Transfer-Encoding: chunked", "-T", "-")
    return curl(instance, *arguments, stdin=video.read_bytes())


def requests_raw(instance: WebInstance, video: Path) -> bytes:
    with video.open("rb") as file:
        headers = {"Content-Type": "video/mp4"}
        url = f"{instance.url}/v1/detections"
        return requests.post(url, data=file, headers=headers, timeout=SECONDS).content


def requests_multipart(instance: WebInstance, video: Path) -> bytes:
    with video.open("rb") as file:
        url = f"{instance.url}/v1/detections"
        return requests.post(url, files={"video": file}, timeout=SECONDS).content


def browser_form(instance: WebInstance, video: Path) -> bytes:
    with running_browser() as browser:
        return send_form(browser, f"{instance.url}/v1/detections", video).encode()


def tuspy(instance: WebInstance, video: Path) -> bytes:
    sent = finish(start_tuspy(instance, video, chunk_size=1_000_000, metadata=DETECT, upload_checksum=True))
    return result(instance, sent["job"])


def tus_js_client(instance: WebInstance, video: Path) -> bytes:
    sent = finish(start_tus_js(instance, video, uploadDataDuringCreation=True, metadata=DETECT))
    assert sent["requests"] == {"POST": 1}
    return result(instance, sent["job"])


def tus_js_client_in_parallel(instance: WebInstance, video: Path) -> bytes:
    sent = finish(start_tus_js(instance, video, parallelUploads=3, metadata=DETECT))
    return result(instance, sent["job"])


CLIENTS: dict[str, Callable[[WebInstance, Path], bytes]] = {
    "curl, raw body (`-T`)": curl_raw,
    "curl, form (`-F`)": curl_multipart,
    "curl, chunked": curl_chunked,
    "requests, raw body": requests_raw,
    "requests, form": requests_multipart,
    "browser, form": browser_form,
    "tuspy": tuspy,
    "tus-js-client": tus_js_client,
    "tus-js-client, `parallelUploads`": tus_js_client_in_parallel,
}


@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_gets_the_answer(instance: WebInstance, video: Path, name: str):
    assert CLIENTS[name](instance, video) == b"".join(document(5))
    newest = requests.get(f"{instance.url}/v1/jobs?limit=1", timeout=SECONDS).json()["jobs"][0]["source"]
    assert newest["bytes"] == len(VIDEO)
    assert newest["sha256"] in (None, hashlib.sha256(VIDEO).hexdigest())


def test_the_documentation_names_these_clients():
    page = (CHECKOUT / "docs" / "uploads.md").read_text()
    table = page.partition("## Clients")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (?!client \||---)(.*?) \|", table, re.MULTILINE) == [*CLIENTS]


# ---- tus clients as processes


def start_tuspy(instance: WebInstance, video: Path, **options: Any) -> subprocess.Popen[bytes]:
    return start([sys.executable, "-c", TUSPY], instance, video, options, video.with_name("tuspy.json"))


def start_tus_js(instance: WebInstance, video: Path, **options: Any) -> subprocess.Popen[bytes]:
    return start(
        [str(NODE), str(TUS_JS / "upload.mjs")], instance, video, options, video.with_name("js.json")
    )


def start(
    command: list[str], instance: WebInstance, video: Path, options: dict[str, Any], storage: Path
) -> subprocess.Popen[bytes]:
    order = {"endpoint": f"{instance.url}/v1/uploads", "file": str(video), "storage": str(storage)}
    arguments = [*command, json.dumps(order | {"options": options})]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CHECKOUT)


def finish(client: subprocess.Popen[bytes]) -> dict[str, Any]:
    printed, errors = client.communicate(timeout=SECONDS)
    assert client.returncode == 0, errors.decode()
    sent: dict[str, Any] = json.loads(printed)
    return sent


def result(instance: WebInstance, job_id: str) -> bytes:
    def get() -> requests.Response:
        return requests.get(f"{instance.url}/v1/jobs/{job_id}/result", timeout=SECONDS)

    wait_until(lambda: get().status_code != 409)
    return get().content


# ---- killed and resumed


def received_bytes(instance: WebInstance) -> int:
    return sum(path.stat().st_size for path in instance.folder.uploads.glob("*/video"))


def upload_with_kills(
    instance: WebInstance,
    begin: Callable[[], subprocess.Popen[bytes]],
    size: int,
    kill: Callable[[subprocess.Popen[bytes]], None],
    seed: int,
) -> dict[str, Any]:
    """Kill something at random places of the upload, three times; return what the client says at its end."""
    random_, before = random.Random(seed), received_bytes(instance)
    client = begin()
    for place in sorted(random_.randrange(size * 9 // 10) for _ in range(3)):
        wait_until(lambda: received_bytes(instance) - before >= place or client.poll() is not None)  # noqa: B023
        kill(client)
        if client.poll() is not None or client.returncode == -signal.SIGKILL:
            client.communicate(timeout=SECONDS)
            client = begin()
    return finish(client)


def kill_client(_instance: WebInstance, client: subprocess.Popen[bytes]) -> None:
    client.kill()
    client.wait(timeout=SECONDS)


def kill_workers(instance: WebInstance, _client: subprocess.Popen[bytes]) -> None:
    kill_all(psutil.Process(instance.programs["gunicorn"].pid).children())


START = {"tuspy": start_tuspy, "tus-js-client": start_tus_js, "parallel": start_tus_js}
OPTIONS: dict[str, dict[str, Any]] = {
    "tuspy": {"chunk_size": 300_000, "retries": 20, "retry_delay": 1},
    "tus-js-client": {"chunkSize": 300_000},
    "parallel": {"chunkSize": 300_000, "parallelUploads": 3},
}


@pytest.mark.parametrize("victim", [kill_client, kill_workers], ids=["client", "workers"])
@pytest.mark.parametrize("client", [*START])
def test_an_upload_goes_on_after_kills_at_random_offsets(
    instance: WebInstance,
    tmp_path: Path,
    client: str,
    victim: Callable[[WebInstance, subprocess.Popen[bytes]], None],
):
    data = os.urandom(9_000_003)
    video = tmp_path / "video.mp4"
    video.write_bytes(data)
    before = {path.parent for path in instance.folder.uploads.glob("*/video")}
    sent = upload_with_kills(
        instance,
        lambda: START[client](instance, video, **OPTIONS[client]),
        len(data),
        lambda process: victim(instance, process),
        seed=len(client),
    )
    folder = instance.folder.uploads / sent["url"].rpartition("/")[2]
    assert (folder / "video").read_bytes() == data
    open_uploads = {path.parent for path in instance.folder.uploads.glob("*/video")} - before
    assert folder in open_uploads
    # It was one upload all along. But tus-js-client begins a part anew if it asks for the offset while no
    # worker is there, or if a worker was killed before it could tell the URL.
    assert open_uploads == {folder} or (client != "tuspy" and victim is kill_workers)
