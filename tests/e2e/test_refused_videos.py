"""Files that are no video, or none that can be used: each refused through nginx for its own reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from instance import Instance

MAKERS = {
    "audio.m4a": ["-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac"],
    "image.png": ["-f", "lavfi", "-i", "testsrc2=size=64x64", "-frames:v", "1"],
    "image.jpg": ["-f", "lavfi", "-i", "testsrc2=size=64x64", "-frames:v", "1"],
}


def make_file(folder: Path, name: str) -> Path:
    path = folder / name
    if name in MAKERS:
        command = ["ffmpeg", "-loglevel", "error", *MAKERS[name], str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
    elif name == "page.html":
        path.write_text("<!doctype html><title>no video</title>" * 50)
    elif name == "noise.mp4":
        path.write_bytes(bytes(byte * 37 % 251 for byte in range(100_000)))
    else:
        path.write_text("ffconcat version 1.0\nfile 'other.mp4'\n")
    return path


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("audio.m4a", 422, "no_video_stream"),
        ("image.png", 415, "unsupported_video"),
        ("image.jpg", 415, "unsupported_video"),
        ("page.html", 415, "unsupported_video"),
        ("noise.mp4", 415, "unsupported_video"),
        ("playlist.mp4", 415, "unsupported_video"),
    ],
)
def test_what_is_no_video_is_refused_for_its_reason(
    shared_instance: Instance, tmp_path: Path, name: str, status: int, code: str
) -> None:
    answer = shared_instance.post(make_file(tmp_path, name))
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert problem["detail"]
    assert str(shared_instance.data) not in answer.text
    report = shared_instance.report(answer.headers["Framebox-Job"])
    assert report["state"] == "failed"
    assert not (shared_instance.data / "jobs" / report["id"] / "video").exists()


def test_a_damaged_video_fails_if_asked_to(shared_instance: Instance, test_data: Path) -> None:
    hole = test_data / "damaged" / "hole.mp4"
    told = shared_instance.post(hole, model="none")
    assert told.status_code == 200
    assert told.headers["Framebox-Complete"] == "false"
    assert len(told.json()) == 1264
    failed = shared_instance.post(hole, model="none", on_damage="fail")
    assert failed.status_code == 422
    assert failed.json()["code"] == "damaged"
    assert failed.json()["frames_undecodable"] == 130


def test_a_range_without_frames_is_a_wrong_option(shared_instance: Instance, clip: Path) -> None:
    answer = shared_instance.post(clip, model="none", start=3600)
    assert answer.status_code == 400
    assert answer.json()["parameter"] == "start"
