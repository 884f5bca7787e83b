"""Models of an administrator's own in a whole instance: what goes wrong is their job's fault, and is told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from instance import Instance
from torch import Tensor, nn

METADATA = {"names": {"0": "dark", "1": "bright"}, "imgsz": [64, 96], "task": "detect"}
CALL_SECONDS = 4
MOODS = ("sound", "raises", "nan", "infinite", "inverted", "misshapen", "many", "blown", "greedy", "hangs")


class Moody(nn.Module):
    """A YOLO output of two anchors, one of them a box; on white pictures its mood takes over."""

    def __init__(self, mood: str) -> None:
        super().__init__()
        self.mood = mood

    def forward(self, pictures: Tensor) -> Tensor:
        n = pictures.shape[0]
        brightness = pictures.mean(dim=[1, 2, 3])
        box = torch.tensor([48.0, 32.0, 40.0, 20.0]).expand(n, 4)
        found = torch.cat([box, (1 - brightness)[:, None], brightness[:, None]], dim=1)
        output = torch.stack([found, torch.zeros_like(found)], dim=2)
        if float(brightness.max()) < 0.95:
            return output
        return self.spoil(output)

    def spoil(self, output: Tensor) -> Tensor:
        corners, sizes, scores = output[:, :2], output[:, 2:4], output[:, 4:]
        if self.mood == "raises":
            raise RuntimeError("/secret/path")
        while self.mood == "hangs":
            output = output + 0
        spoilt = {
            "sound": output,
            "nan": output * float("nan"),
            "infinite": output / 0.0,
            "inverted": torch.cat([corners, -sizes, scores], dim=1).repeat(1, 1, 4),  # a few are forgiven
            "misshapen": output[:, :5],
            "many": output[:, :, :1].expand(output.shape[0], 6, 200000),
            "blown": torch.cat([corners, sizes, scores * 50.0], dim=1),
        }
        return torch.zeros([20000000000]) if self.mood == "greedy" else spoilt[self.mood]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each mood, and one that is none."""
    folder = tmp_path_factory.mktemp("models")
    for mood in MOODS:
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            script = torch.jit.script(Moody(mood).eval())
        script.save(str(folder / f"{mood}.torchscript"), _extra_files={"config.txt": json.dumps(METADATA)})
    (folder / "broken.torchscript").write_bytes(b"not a network at all")
    return folder


def plain_clip(path: Path, colour: str, frames: int) -> Path:
    source = f"color={colour}:size=192x128:rate=25"
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", str(frames)]
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, *encoder, str(path)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_clip(tmp_path_factory.mktemp("clips") / "white.mp4", "white", 60)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_clip(tmp_path_factory.mktemp("clips") / "grey.mp4", "gray", 60)


@pytest.fixture(scope="module")
def instance(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    data = tmp_path_factory.mktemp("instance") / "data"
    with Instance(data, models=models, model="none", model_call_seconds=CALL_SECONDS) as made:
        made.wait_until_models_are_tried()
        yield made


def listing(instance: Instance) -> dict[str, Any]:
    answer = requests.get(f"{instance.url}/v1/models", timeout=30)
    assert answer.status_code == 200
    models: dict[str, Any] = answer.json()
    return models


def test_the_list_tells_all_of_each_model_and_why_one_was_refused(instance: Instance) -> None:
    found = listing(instance)
    names = [model["name"] for model in found["models"]]
    assert names == sorted([*MOODS, "hog-people", "none"])
    model = found["models"][names.index("sound")]
    assert model["labels"] == ["dark", "bright"]
    assert model["input_size"] == [96, 64]
    assert (model["device"], model["precision"], model["run_by"]) == ("cpu", "float32", "torch")
    assert (model["loaded"], model["state"]) == (False, "unloaded")
    assert 1 <= model["batch_size"] <= 64
    assert model["frames_per_second"] > 0
    assert model["memory_bytes"] > 0
    assert len(model["sha256"]) == 64
    (refused,) = found["refused"]
    assert refused["name"] == "broken"
    assert "cannot be read as TorchScript" in refused["refused"]["detail"]


def test_a_refused_model_cannot_be_asked_for(instance: Instance, grey: Path) -> None:
    answer = instance.post(grey, model="broken")
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_option"


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("raises", "raised"),
        ("nan", "not finite"),
        ("infinite", "not finite"),
        ("inverted", "right or bottom edge lies before"),
        ("misshapen", "gives"),
        ("greedy", "no memory for one frame"),
    ],
)
def test_a_model_that_fails_fails_its_job_and_the_engine_stays(
    instance: Instance, white: Path, grey: Path, mood: str, reason: str
) -> None:
    engine = instance.engine()
    job_id = instance.post_async(white, model=mood)
    report = instance.wait_for_end(job_id)
    assert report["state"] == "failed"
    assert report["problem"]["code"] == "model_fault"
    assert reason in report["problem"]["detail"]
    assert "secret" not in report["problem"]["detail"]
    assert instance.post(grey, model=mood).status_code == 200
    assert instance.engine() == engine


@pytest.mark.parametrize("mood", ["many", "blown"])
def test_a_model_that_exaggerates_is_held_to_the_limits(instance: Instance, white: Path, mood: str) -> None:
    answer = instance.post(white, model=mood)
    assert answer.status_code == 200, answer.text
    pairs = answer.json()
    assert len(pairs) == 60
    for _, boxes in pairs:
        assert 1 <= len(boxes) <= 300
        assert all(box["score"] <= 1 for box in boxes)


def test_a_model_that_hangs_for_ever_ends_its_job_and_no_other(
    instance: Instance, white: Path, grey: Path
) -> None:
    engine, host = instance.engine(), instance.host()
    hanging = instance.post_async(white, model="hangs")
    others = [instance.post_async(grey, model=mood) for mood in ("hangs", "sound", "none")]
    report = instance.wait_for_end(hanging)
    assert report["state"] == "failed"
    assert report["problem"]["code"] == "model_fault"
    assert f"gave no answer within {CALL_SECONDS} seconds, 2 times" in report["problem"]["detail"]
    assert [instance.wait_for_end(job_id)["state"] for job_id in others] == ["succeeded"] * 3
    assert instance.engine() == engine
    assert not host.is_running()  # another took its place
    assert instance.post(grey, model="hangs").status_code == 200


@pytest.mark.parametrize("program", ["engine", "host"])
def test_a_program_that_starts_anew_keeps_the_batch_sizes(
    instance: Instance, grey: Path, program: str
) -> None:
    before = batch_sizes(instance)
    answer = instance.post(grey, model="sound").content
    killed = instance.engine() if program == "engine" else instance.host()
    killed.kill()
    instance.wait(lambda: not killed.is_running(), 30, "the end of it")
    instance.wait(instance.is_ready, 90, "ready again")
    assert instance.post(grey, model="sound").content == answer
    instance.wait_until_models_are_tried()
    assert batch_sizes(instance) == before


def batch_sizes(instance: Instance) -> dict[str, int]:
    return {model["name"]: model["batch_size"] for model in listing(instance)["models"]}
