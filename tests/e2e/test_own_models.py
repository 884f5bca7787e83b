"""Models of one's own through a whole instance: the documented class; a file that changes under a job."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from instance import CHECKOUT, Instance, make_clip

from app.storage.data_folder import DataFolder

KILLED = ("nothing", "engine", "host")

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
        sha256: str | None = next(model["sha256"] for model in models if model["name"] == name)
        return sha256

    return str(instance.wait(listed, 60, f"model {name!r}"))


@dataclass(frozen=True)
class Held:
    """A model that waits while the file `hold` is there."""

    folder: Path

    @property
    def hold(self) -> Path:
        return self.folder.parent.parent / f"hold {self.folder.name}"

    def write(self, label: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "hold.txt").write_text(str(self.hold))
        (self.folder / "framebox.toml").write_text(f'entry_point = "{self.folder.name}:Held"\n')
        (self.folder / f"{self.folder.name}.py").write_text(HELD.replace("LABEL", label))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documented class as model "mine", and a held model for each test that changes one."""
    page = (CHECKOUT / "docs" / "models.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    models = tmp_path_factory.mktemp("own") / "models"
    (models / "mine").mkdir(parents=True)
    (models / "mine" / "mine.py").write_text(example[1])
    (models / "mine" / "framebox.toml").write_text('entry_point = "mine:BrightestSpot"\n')
    for killed in KILLED:
        Held(models / f"held_{killed}").write("old")
    return models


@pytest.fixture(scope="module")
def instance(models: Path) -> Iterator[Instance]:
    with Instance(models.parent / "data", models=models, model="none", segment_frames=50) as instance:
        yield instance


def test_the_documented_class_serves(instance: Instance, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=60)
    answer = instance.post(clip, model="mine")
    assert answer.status_code == 200, answer.text
    pairs = answer.json()
    assert [number for number, _ in pairs] == list(range(60))
    for _, boxes in pairs:
        assert [found["label"] for found in boxes] == ["spot"]
    report = instance.report(answer.headers["Framebox-Job"])
    assert report["model"]["sha256"] == model_hash(instance, "mine")


@pytest.mark.parametrize("killed", KILLED)
def test_a_changed_model_never_mixes_into_a_job(
    instance: Instance, models: Path, clip: Path, killed: str
) -> None:
    """A job under way keeps the model that it has; one that begins anew is done wholly with the new one."""
    held = Held(models / f"held_{killed}")
    is_killed, name = killed != "nothing", held.folder.name
    old_hash = model_hash(instance, name)
    held.hold.touch()
    job = instance.post_async(clip, model=name)
    parts = DataFolder(instance.data).parts(job)
    instance.wait(lambda: parts.is_dir() and any(parts.iterdir()), 60, "a part that is done")
    held.write("new")
    if is_killed:
        process = instance.engine() if killed == "engine" else instance.host()
        process.kill()
        instance.wait(lambda: not process.is_running(), 30, f"the end of the {killed}")
    held.hold.unlink()
    report = instance.wait_for_end(job)
    assert report["state"] == "succeeded", report
    assert labels_of(instance.result(job)) == ({"new"} if is_killed else {"old"})
    assert (report["model"]["sha256"] == old_hash) is not is_killed
    if is_killed:
        assert report["model"]["sha256"] == model_hash(instance, name)
