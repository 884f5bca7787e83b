"""The client and its command: what they send, what they read, and what they say when it goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from instance import CHECKOUT, Instance
from ports import free_port

from app.client.framebox import Framebox, Refused


def detect(*arguments: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "app", "detect", *arguments],
        cwd=CHECKOUT,
        env=os.environ | {f"FRAMEBOX_{name.upper()}": str(value) for name, value in settings.items()},
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_frames_arrive_in_order_with_their_boxes(shared_instance: Instance, walkers: Path) -> None:
    with Framebox(shared_instance.url).detect(walkers, start=1.5, end=2) as answer:
        frames = list(answer.frames())
    assert answer.complete
    assert answer.frame_count == len(frames) == 6
    assert [frame.id for frame in frames] == [18, 19, 20, 21, 22, 23]
    boxes = [box for frame in frames for box in frame.boxes]
    assert boxes
    assert all(box.label == "person" and 0.5 <= box.score <= 1 for box in boxes)
    assert all(left < right and top < bottom for left, top, right, bottom in (box.box_xyxy for box in boxes))


def test_frames_come_with_their_times_if_asked_for(shared_instance: Instance, clip: Path) -> None:
    with Framebox(shared_instance.url).detect(clip, model="none", stride=100, times=True) as answer:
        assert [frame.pts_seconds for frame in answer.frames()] == [0.0, 4.0, 8.0, 12.0, 16.0]
    with Framebox(shared_instance.url).detect(clip, model="none", stride=100) as answer:
        assert [frame.pts_seconds for frame in answer.frames()] == [None] * 5


def test_the_command_prints_times_if_asked_for(shared_instance: Instance, clip: Path) -> None:
    options = ("model=none", "stride=250", "format=ndjson", "times=true")
    printed = detect(str(clip), "--url", shared_instance.url, *(f"--option={option}" for option in options))
    assert printed.stdout == b'[0,[],{"pts_seconds":0.0}]\n[250,[],{"pts_seconds":10.0}]\n', printed.stderr


@pytest.fixture(scope="module")
def walkers() -> Path:
    return CHECKOUT / "docs" / "walkers.mp4"


def test_the_command_prints_the_bytes_that_the_service_sends(shared_instance: Instance, clip: Path) -> None:
    printed = detect(str(clip), "--url", shared_instance.url, "--option", "model=none")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == shared_instance.post(clip, model="none").content


def test_the_command_finds_this_machines_instance_by_its_settings(
    shared_instance: Instance, clip: Path
) -> None:
    printed = detect(str(clip), "--option", "model=none", "--option", "format=csv", port=shared_instance.port)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout


def test_a_refusal_is_raised_with_its_reason(shared_instance: Instance, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video at all")
    with pytest.raises(Refused) as refused, Framebox(shared_instance.url).detect(text):
        pass
    assert refused.value.problem["code"] == "unsupported_video"
    printed = detect(str(text), "--url", shared_instance.url)
    assert printed.returncode == 1
    assert refused.value.problem["detail"] in printed.stderr.decode()


def test_a_service_that_is_not_there_is_named(clip: Path) -> None:
    printed = detect(str(clip), "--url", f"http://127.0.0.1:{free_port()}")
    assert printed.returncode == 1
    assert b"framebox: " in printed.stderr
    assert b"Traceback" not in printed.stderr


def test_an_option_without_a_value_is_refused_by_the_command(clip: Path) -> None:
    printed = detect(str(clip), "--option", "stride")
    assert printed.returncode == 2
    assert b"NAME=VALUE" in printed.stderr
