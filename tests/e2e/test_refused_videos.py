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


def test_a_video_of_nothing_but_damaged_pictures_is_not_answered_with_noise(
    shared_instance: Instance, failing_videos: Path, tmp_path: Path
) -> None:
    """Encrypted video whose header does not call it so: the decoder makes grey pictures of it."""
    encrypted, disguised = failing_videos / "encrypted_cenc_prog_8s.mp4", tmp_path / "disguised.mp4"
    disguised.write_bytes(encrypted.read_bytes().replace(b"encv", b"avc1"))
    answer = shared_instance.post(disguised, model="none")
    assert answer.status_code == 422
    assert answer.json()["code"] == "nothing_decodable"
    assert answer.json()["frames_corrupt"] == answer.json()["frames_analysed"] == 240


def test_a_lossy_job_is_not_shown_as_whole(shared_instance: Instance, test_data: Path) -> None:
    """Of a recording that was cut between two pictures, the clock tells how many frames are missing."""
    answer = shared_instance.post(test_data / "damaged" / "trunc.mkv", model="none")
    assert answer.headers["Framebox-Complete"] == "false"
    report = shared_instance.report(answer.headers["Framebox-Job"])
    progress, found = report["progress"], report["completeness"]
    assert (progress["frames_done"], progress["frames_missing"], progress["frames_total"]) == (637, 2, 639)
    assert found["frames_undecodable"] == 2
    (place,) = found["damage"]
    assert place["reason"] == "the file ends inside an element"
    assert not place["harmless"]
    missing = {n for gap in found["undecodable"] for n in range(gap["first"], gap["last"] + 1)}
    assert missing.isdisjoint(frame_id for frame_id, _ in answer.json())


def test_a_range_without_frames_is_a_wrong_option(shared_instance: Instance, clip: Path) -> None:
    answer = shared_instance.post(clip, model="none", start=3600)
    assert answer.status_code == 400
    assert answer.json()["parameter"] == "start"
