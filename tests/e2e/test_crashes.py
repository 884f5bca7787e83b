"""A model that ends its host at one video: its job ends, and no other; the engine does not notice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance

ENGINE_DEATHS = 3

ENDS = {"aborting": "os.abort()", "losing": "raise DeviceLost('gone')"}  # by the model's name

DEADLY = """
import os
import torch
from app.detection.detector import Detections, DeviceLost

class Deadly:
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
            END
        box = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
        return [Detections(box.clone(), torch.tensor([0.9]), torch.tensor([0])) for _ in frames]
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    models = tmp_path_factory.mktemp("models")
    for name, end in ENDS.items():
        folder = models / name
        folder.mkdir()
        (folder / "framebox.toml").write_text(f'entry_point = "{name}:Deadly"\n')
        (folder / f"{name}.py").write_text(DEADLY.replace("END", end))
    data = tmp_path_factory.mktemp("instance") / "data"
    with Instance(data, model="none", models=models, engine_deaths=ENGINE_DEATHS) as made:
        yield made


def plain_clip(path: Path, colour: str) -> Path:
    source = f"color={colour}:size=192x128:rate=25"
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", "60"]
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, *encoder, str(path)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize("model", ENDS)
def test_a_model_that_ends_its_host_again_and_again_ends_its_job_and_no_other(
    instance: Instance, tmp_path: Path, model: str
) -> None:
    white, grey = plain_clip(tmp_path / "white.mp4", "white"), plain_clip(tmp_path / "grey.mp4", "gray")
    engine = instance.engine()
    crashing = instance.post_async(white, model=model)
    others = [instance.post_async(grey, model=name) for name in (model, "none")]
    report = instance.wait_for_end(crashing)
    assert report["state"] == "failed"
    assert report["problem"]["code"] == "internal_error"
    assert f"The program that computes died {ENGINE_DEATHS} times in a row" in report["problem"]["detail"]
    assert [instance.wait_for_end(job_id)["state"] for job_id in others] == ["succeeded"] * 2
    host = instance.host()
    assert instance.post(grey, model=model).status_code == 200
    assert instance.host() == host
    assert instance.engine() == engine
