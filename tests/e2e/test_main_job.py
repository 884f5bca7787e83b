"""A video goes in, one JSON comes out: the contract, through nginx, on real and on generated video."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
from base64 import b64encode
from pathlib import Path

import requests
from instance import Instance, make_clip, repeat_clip


def test_every_frame_of_a_real_video_has_its_pair(shared_instance: Instance, people_video: Path) -> None:
    answer = shared_instance.post(people_video, model="none")
    assert answer.status_code == 200, answer.text
    assert [frame_id for frame_id, _ in answer.json()] == list(range(1394))
    assert answer.headers["Framebox-Frames"] == "1394"
    assert answer.headers["Framebox-Complete"] == "true"


def test_people_are_found_where_they_are(shared_instance: Instance, people_video: Path) -> None:
    # Seconds 26 to 29: one person stands in the middle of the room, wholly in the picture.
    pairs = shared_instance.post(people_video, start=26, end=29).json()
    assert [frame_id for frame_id, _ in pairs] == list(range(260, 290))
    found = [[box for box in boxes if box["box"][0] < 384 < box["box"][2]] for _, boxes in pairs]
    assert sum(map(bool, found)) >= 27
    for _, boxes in pairs:
        for box in boxes:
            x_min, y_min, x_max, y_max = box["box"]
            assert box["label"] == "person"
            assert 0 <= x_min < x_max <= 768
            assert 0 <= y_min < y_max <= 432
    # Seconds 48 to 49: nobody is there.
    empty = shared_instance.post(people_video, start=48, end=49).json()
    assert sum(bool(boxes) for _, boxes in empty) <= 1


def test_the_headers_describe_the_answer(shared_instance: Instance, clip: Path) -> None:
    answer = shared_instance.post(clip, model="none")
    digest = hashlib.sha256(answer.content)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Repr-Digest"] == f"sha-256=:{b64encode(digest.digest()).decode()}:"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    report = requests.get(shared_instance.url + answer.links["describedby"]["url"], timeout=30).json()
    assert report["id"] == answer.headers["Framebox-Job"]
    assert report["state"] == "succeeded"
    assert report["document"]["sha256"] == digest.hexdigest()


def test_the_report_accounts_for_every_frame(shared_instance: Instance, clip: Path) -> None:
    answer = shared_instance.post(clip, model="none")
    report = shared_instance.report(answer.headers["Framebox-Job"])
    assert (report["video"]["width"], report["video"]["height"]) == (320, 240)
    assert report["video"]["codec"] == "h264"
    assert report["video"]["frame_rate"] == "25"
    assert report["video"]["time_base"] == "1/12800"
    assert report["video"]["start_seconds"] == 0.0
    assert report["model"]["labels"] == []
    completeness = report["completeness"]
    assert completeness["complete"] is True
    assert completeness["truncated"] is False
    for count in ("frames_indexed", "frames_wanted", "frames_analysed"):
        assert completeness[count] == 500, count
    assert completeness["frames_undecodable"] == 0
    assert report["source"]["sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()


def test_raw_and_multipart_bodies_give_the_same_bytes(shared_instance: Instance, clip: Path) -> None:
    raw = shared_instance.post(clip, model="none", stride=7)
    multipart = subprocess.run(
        ["curl", "-fsS", "-F", f"video=@{clip}", f"{shared_instance.url}/v1/detections?model=none&stride=7"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert multipart.stdout == raw.content
    assert [frame_id for frame_id, _ in raw.json()] == list(range(0, 500, 7))


def test_sampling_keeps_the_ids_of_the_whole_video(shared_instance: Instance, clip: Path) -> None:
    answer = shared_instance.post(clip, model="none", start=4, end=6, stride=5)
    assert [frame_id for frame_id, _ in answer.json()] == list(range(100, 150, 5))


def test_every_format_says_the_same(shared_instance: Instance, people_video: Path) -> None:
    options = {"start": 30, "end": 31}
    pairs = shared_instance.post(people_video, **options).json()
    boxes = [[frame_id, [found["box"] for found in row]] for frame_id, row in pairs]
    assert any(row for _, row in boxes)
    job = shared_instance.post(people_video, format="boxes", **options)
    assert job.json() == boxes
    result = f"{shared_instance.url}/v1/jobs/{job.headers['Framebox-Job']}/result"
    rows = sum(len(row) for _, row in boxes)
    table = requests.get(result, params={"format": "csv"}, timeout=30)
    assert len(table.text.splitlines()) == rows + 1
    coco = requests.get(result, params={"format": "coco"}, timeout=30).json()
    assert len(coco["annotations"]) == rows
    assert len(coco["images"]) == len(pairs)
    mot = requests.get(result, params={"format": "mot"}, timeout=30)
    assert len(mot.text.splitlines()) == rows
    ndjson = requests.get(result, params={"format": "ndjson"}, timeout=30)
    assert len(ndjson.text.splitlines()) == len(pairs)


def test_every_format_with_times_says_the_same_and_when(
    shared_instance: Instance, people_video: Path
) -> None:
    options = {"start": 30, "end": 33, "times": "true"}  # ten frames a second
    timed = shared_instance.post(people_video, **options)
    records = timed.json()
    assert [record[2]["pts_seconds"] for record in records] == [30 + n / 10 for n in range(30)]
    result = f"{shared_instance.url}/v1/jobs/{timed.headers['Framebox-Job']}/result"
    plain = requests.get(result, timeout=30)
    assert plain.json() == [record[:2] for record in records]
    digest = b64encode(hashlib.sha256(timed.content).digest()).decode()
    assert timed.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert timed.headers["ETag"] != plain.headers["ETag"]

    def get(document_format: str) -> requests.Response:
        return requests.get(result, params={"format": document_format, "times": "true"}, timeout=30)

    times = {record[0]: record[2]["pts_seconds"] for record in records}
    assert [json.loads(line) for line in get("ndjson").text.splitlines()] == records
    rows = list(csv.DictReader(get("csv").text.splitlines()))
    assert len(rows) == sum(len(record[1]) for record in records)
    assert all(float(row["pts_seconds"]) == times[int(row["frame_id"])] for row in rows)
    images = get("coco").json()["images"]
    assert {image["frame_id"]: image["pts_seconds"] for image in images} == times
    for document_format in ("boxes", "mot"):
        assert get(document_format).status_code == 400


def test_a_job_with_missing_frames_is_never_shown_as_whole(
    shared_instance: Instance, test_data: Path
) -> None:
    answer = shared_instance.post(test_data / "damaged" / "hole.mp4", model="none")
    assert answer.headers["Framebox-Complete"] == "false"
    job_id = answer.headers["Framebox-Job"]
    progress = shared_instance.report(job_id)["progress"]
    assert (progress["frames_done"], progress["frames_missing"], progress["frames_total"]) == (
        1264,
        130,
        1394,
    )
    assert progress["fraction"] == 1.0
    page = requests.get(f"{shared_instance.url}/", timeout=30).text
    (row,) = [row for row in page.split("<tr>") if job_id in row]
    assert "1264 of 1394 frames, 130 missing" in row
    assert "incomplete" in row


def test_two_runs_give_the_same_bytes(shared_instance: Instance, people_video: Path) -> None:
    options = {"start": 30, "end": 32, "max_side": 400}
    first, second = (shared_instance.post(people_video, **options) for _ in range(2))
    assert first.headers["Framebox-Job"] != second.headers["Framebox-Job"]
    assert first.content == second.content


def test_one_and_two_decoders_give_the_same_bytes_and_other_segments_the_same_boxes(
    shared_instance: Instance, people_video: Path, tmp_path: Path
) -> None:
    options = {"start": 28, "end": 33, "max_side": 400}
    two = shared_instance.post(people_video, **options)
    with Instance(tmp_path / "one", decoders=1, segment_frames=100) as instance:
        assert instance.post(people_video, **options).content == two.content
    with Instance(tmp_path / "longer", segment_frames=37) as instance:
        assert instance.post(people_video, **options).json() == two.json()


def test_a_short_clip_is_answered_long_before_a_long_one(
    shared_instance: Instance, tmp_path: Path, clip: Path
) -> None:
    short_clip = make_clip(tmp_path / "short.mp4", frames=300, size="640x360")
    long_clip = repeat_clip(short_clip, tmp_path / "long.mp4", times=10)
    long_job = shared_instance.post_async(long_clip)
    shared_instance.wait(lambda: shared_instance.report(long_job)["state"] == "running", 30, "a start")
    assert shared_instance.post(clip, end=2).status_code == 200
    report = shared_instance.report(long_job)
    assert report["state"] == "running"
    assert report["progress"]["frames_done"] < 1500
    assert requests.delete(f"{shared_instance.url}/v1/jobs/{long_job}", timeout=30).status_code == 202
    assert shared_instance.wait_for_end(long_job)["state"] == "cancelled"
