"""A video that comes in pieces, through the whole instance."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import requests
from instance import Instance

TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


def upload(instance: Instance, video: bytes, *, requests_of_bytes: int, **metadata: str) -> requests.Response:
    """Send the video in several requests; return the answer to the last."""
    told = ",".join(f"{key} {b64encode(value.encode()).decode()}" for key, value in metadata.items())
    headers = TUS | {"Upload-Length": str(len(video)), "Upload-Metadata": told}
    answer = requests.post(f"{instance.url}/v1/uploads", headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
    address = f"{instance.url}{answer.headers['Location']}"
    for start in range(0, len(video), requests_of_bytes):
        piece = video[start : start + requests_of_bytes]
        answer = requests.patch(address, data=piece, headers=TUS | {"Upload-Offset": str(start)}, timeout=60)
        assert answer.status_code == 204, answer.text
    return answer


def test_a_video_sent_in_pieces_has_the_answer_of_the_posted_one(
    shared_instance: Instance, people_video: Path
) -> None:
    options = {"start": 26, "end": 27}
    posted = shared_instance.post(people_video, **options)
    assert posted.status_code == 200
    data = people_video.read_bytes()
    last = upload(shared_instance, data, requests_of_bytes=len(data) // 3 + 1, filename="people.mp4")
    upload_id = str(last.request.url).rpartition("/")[2]
    url = f"{shared_instance.url}/v1/detections"
    answer = requests.post(url, params=options, json={"upload": upload_id}, timeout=600)
    assert answer.status_code == 200, answer.text
    assert answer.content == posted.content
    assert answer.headers["ETag"] == posted.headers["ETag"]
    report = shared_instance.report(answer.headers["Framebox-Job"])
    assert report["source"]["name"] == "people.mp4"
    assert report["completeness"]["frames_analysed"] == 10


def test_a_job_that_starts_with_the_last_byte_has_the_same_answer(
    shared_instance: Instance, clip: Path
) -> None:
    posted = shared_instance.post(clip, model="none", stride=5)
    last = upload(shared_instance, clip.read_bytes(), requests_of_bytes=20_000, detect="model=none&stride=5")
    job_id = last.headers["Framebox-Job"]
    assert shared_instance.wait_for_end(job_id)["state"] == "succeeded"
    assert shared_instance.result(job_id) == posted.content
