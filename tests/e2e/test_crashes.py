"""A model that ends the whole engine at one video: its job ends, and no other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance

ENGINE_DEATHS = 3

ABORTING = """
import os
import torch
from app.detection.detector import Detections

class Aborting:
    class_names = ("thing",)
    default_min_score = 0.5
    batch_size = 8
    precision = "float32"

    def __init__(self, folder, device):
        pass

    def frame_size(self, width, height):
        return min(width, 64), min(height, 48)

    def detect(self, frames):
        if float(frames.float().mean()) > 250:
            os.abort()
        box = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
        return [Detections(box.clone(), torch.tensor([0.9]), torch.tensor([0])) for _ in frames]
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    folder = tmp_path / "models" / "aborting"
    folder.mkdir(parents=True)
    (folder / "framebox.toml").write_text('entry_point = "aborting:Aborting"\n')
    (folder / "aborting.py").write_text(ABORTING)
    settings = {"model": "none", "models": folder.parent, "engine_deaths": ENGINE_DEATHS}
    with Instance(tmp_path / "data", **settings) as made:
        yield made


def plain_clip(path: Path, colour: str) -> Path:
    source = f"color={colour}:size=192x128:rate=25"
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", "60"]
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, *encoder, str(path)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    return path


def test_a_model_that_ends_the_engine_again_and_again_ends_its_job_and_no_other(
    instance: Instance, tmp_path: Path
) -> None:
    white, grey = plain_clip(tmp_path / "white.mp4", "white"), plain_clip(tmp_path / "grey.mp4", "gray")
    crashing = instance.post_async(white, model="aborting")
    others = [instance.post_async(grey, model=model) for model in ("aborting", "none")]
    report = instance.wait_for_end(crashing)
    assert report["state"] == "failed"
    assert report["problem"]["code"] == "internal_error"
    assert f"The engine died {ENGINE_DEATHS} times in a row" in report["problem"]["detail"]
    assert [instance.wait_for_end(job_id)["state"] for job_id in others] == ["succeeded"] * 2
    engine = instance.engine()
    assert instance.post(grey, model="aborting").status_code == 200
    assert instance.engine() == engine
