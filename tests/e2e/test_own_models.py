"""Models of one's own through a whole instance: the documented class; a file that changes under a job."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import requests
from instance import CHECKOUT, Instance, make_clip

from app.storage.data_folder import DataFolder

# While a file lies where `hold.txt` says, it takes 160 frames and then waits: of three segments of 50 frames
# that are at work, one at least is done by then.
HELD = """
import time
from pathlib import Path
import torch
from app.detection.detector import Detections

class Held:
    class_names = ("LABEL",)
    default_min_score = 0.5
    batch_size = 8
    precision = "float32"

    def __init__(self, folder, device):
        self.hold = Path((folder / "hold.txt").read_text())
        self.held_frames = 0

    def frame_size(self, width, height):
        return min(width, 64), min(height, 48)

    def detect(self, frames):
        n, height, width, _ = frames.shape
        self.held_frames += n * self.hold.exists()
        deadline = time.monotonic() + 120
        while self.held_frames > 160 and self.hold.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("held for ever")
            time.sleep(0.02)
        box = torch.tensor([[0.0, 0.0, width / 2, float(height)]])
        return [Detections(box.clone(), torch.tensor([0.9]), torch.tensor([0])) for _ in range(n)]
"""


def labels_of(answer: bytes) -> set[str]:
    return {found["label"] for _, boxes in json.loads(answer) for found in boxes}


def model_hash(instance: Instance, name: str) -> str:
    """The hash of a model that has been loaded once."""

    def listed() -> str | None:
        models = requests.get(f"{instance.url}/v1/models", timeout=30).json()["models"]
        return next(model["sha256"] for model in models if model["name"] == name)

    return str(instance.wait(listed, 60, f"model {name!r}"))


def test_the_documented_class_serves(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "models.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(example[1])
    (folder / "framebox.toml").write_text('entry_point = "mine:BrightestSpot"\n')
    clip = make_clip(tmp_path / "clip.mp4", frames=60)
    with Instance(tmp_path / "data", models=tmp_path / "models") as instance:
        answer = instance.post(clip, model="mine")
        assert answer.status_code == 200, answer.text
        pairs = answer.json()
        assert [number for number, _ in pairs] == list(range(60))
        for _, boxes in pairs:
            assert [found["label"] for found in boxes] == ["spot"]
        report = instance.report(answer.headers["Framebox-Job"])
        assert report["model"]["sha256"] == model_hash(instance, "mine")


@pytest.fixture
def held(tmp_path: Path) -> tuple[Path, Path]:
    """The module of model "held", and the file that holds it."""
    folder = tmp_path / "models" / "held"
    folder.mkdir(parents=True)
    hold = tmp_path / "hold"
    (folder / "hold.txt").write_text(str(hold))
    (folder / "framebox.toml").write_text('entry_point = "held:Held"\n')
    (folder / "held.py").write_text(HELD.replace("LABEL", "old"))
    return folder / "held.py", hold


@pytest.mark.parametrize("killed", ["", "engine", "host"], ids=lambda killed: killed or "nothing killed")
def test_a_changed_model_never_mixes_into_a_job(
    tmp_path: Path, held: tuple[Path, Path], clip: Path, killed: str
) -> None:
    """A job under way keeps the model that it has; one that begins anew is done wholly with the new one."""
    module, hold = held
    with Instance(tmp_path / "data", models=tmp_path / "models", segment_frames=50) as instance:
        old_hash = model_hash(instance, "held")
        hold.touch()
        job = instance.post_async(clip, model="held")
        parts = DataFolder(instance.data).parts(job)
        instance.wait(lambda: parts.is_dir() and any(parts.iterdir()), 60, "a part that is done")
        module.write_text(HELD.replace("LABEL", "new"))
        if killed:
            process = instance.engine() if killed == "engine" else instance.host()
            process.kill()
            instance.wait(lambda: not process.is_running(), 30, f"the end of the {killed}")
        hold.unlink()
        report = instance.wait_for_end(job)
        assert report["state"] == "succeeded", report
        assert labels_of(instance.result(job)) == ({"new"} if killed else {"old"})
        assert (report["model"]["sha256"] == old_hash) is not bool(killed)
        if killed:
            assert report["model"]["sha256"] == model_hash(instance, "held")
