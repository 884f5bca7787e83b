"""The client of other services, where the service has no thread left for it to wait in."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import requests
from waiting import wait_until
from web_instance import WebInstance, running_instance

from app.client.framebox import Framebox, Refused

SECONDS = 30.0


def _jobs(instance: WebInstance) -> list[dict[str, object]]:
    jobs: list[dict[str, object]] = requests.get(f"{instance.url}/v1/jobs", timeout=SECONDS).json()["jobs"]
    return jobs


@pytest.mark.parametrize("end", ["an answer", "a refusal"])
def test_a_client_that_may_not_wait_asks_until_its_job_has_ended(tmp_path: Path, end: str):
    (tmp_path / "video").write_bytes(
        b'{"frames": 4}' if end == "an answer" else b'{"problem":"no_video_stream"}'
    )
    hold = b'{"hold":"%s"}' % str(tmp_path / "go").encode()
    with running_instance(tmp_path, HTTP_THREADS="8", HTTP_WORKERS="1") as instance:
        url = f"{instance.url}/v1/detections"
        both_places = [
            threading.Thread(target=requests.post, args=(url,), kwargs={"data": hold, "timeout": SECONDS})
            for _ in range(2)
        ]
        for place in both_places:
            place.start()
        wait_until(lambda: len(_jobs(instance)) == 2)
        found: list[object] = []

        def detect() -> None:
            try:
                with Framebox(instance.url).detect(tmp_path / "video", format="pairs", times=True) as answer:
                    found.extend([answer.frame_count, answer.complete])
                    found.extend(frame.pts_seconds for frame in answer.frames())
            except Refused as refused:
                found.append(refused.problem["code"])

        caller = threading.Thread(target=detect)
        caller.start()
        wait_until(lambda: len(_jobs(instance)) == 3)
        (tmp_path / "go").touch()
        caller.join(SECONDS)
        for place in both_places:
            place.join(SECONDS)
    expected = [4, True, 1.4, 1.44, 1.48, 1.52] if end == "an answer" else ["no_video_stream"]
    assert found == expected
