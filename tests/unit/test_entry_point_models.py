"""Detectors that are Python classes: the documented example, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from app.detection.detector import Detector
from app.detection.registry import load_detector
from app.errors import ModelFault

CHECKOUT = Path(__file__).resolve().parents[2]

SOUND = """
import torch
from app.detection.detector import Detections

class Mine:
    class_names = ("thing",)
    default_min_score = 0.5
    batch_size = 4
    precision = "float32"

    def __init__(self, folder, device):
        self.score = 0.75

    def frame_size(self, width, height):
        return min(width, 64), min(height, 48)

    def detect(self, frames):
        n, height, width, _ = frames.shape
        box = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
        return [Detections(box, torch.tensor([self.score]), torch.tensor([0])) for _ in range(n)]
"""


def write(folder: Path, source: str = SOUND, declaration: str = 'entry_point = "mine:Mine"\n') -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(source)
    (folder / "framebox.toml").write_text(declaration)
    return folder


def load(models: Path, name: str = "model") -> Detector:
    return load_detector(name, device="cpu", models_folder=models)


def find(detector: Detector, width: int = 64, height: int = 48) -> tuple[list[float], float]:
    with torch.inference_mode():
        (found,) = detector.detect(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    return found.boxes_xyxy[0].tolist(), found.scores[0].item()


def test_a_class_beside_its_declaration_is_a_model(tmp_path: Path) -> None:
    write(tmp_path / "model")
    detector = load(tmp_path)
    assert (detector.name, detector.device) == ("model", "cpu")
    assert detector.class_names == ("thing",)
    assert detector.frame_size(1920, 1080) == (64, 48)
    assert find(detector) == ([0, 0, 32, 24], 0.75)


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    load(tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == ["framebox.toml", "mine.py"]


def test_two_models_may_have_modules_of_one_name(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", SOUND.replace("0.75", "0.25"))
    one, two = load(tmp_path, "one"), load(tmp_path, "two")
    assert (find(one)[1], find(two)[1]) == (0.75, 0.25)
    assert one.fingerprint != two.fingerprint


def test_a_changed_file_is_another_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    before = load(tmp_path)
    (folder / "mine.py").write_text(SOUND.replace("0.75", "0.25"))
    after = load(tmp_path)
    assert (find(before)[1], find(after)[1]) == (0.75, 0.25)
    assert before.fingerprint != after.fingerprint
    (folder / "weights.bin").write_bytes(b"x")
    assert load(tmp_path).fingerprint not in (before.fingerprint, after.fingerprint)


def test_python_s_own_cache_is_neither_read_nor_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    before = load(tmp_path).fingerprint
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / f"mine.{sys.implementation.cache_tag}.pyc").write_bytes(b"nonsense")
    assert load(tmp_path).fingerprint == before


def test_a_package_may_import_its_neighbours(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", declaration='entry_point = "package.inner:Mine"\n')
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("from .numbers import SCORE\n")
    (folder / "package" / "numbers.py").write_text("SCORE = 0.625\n")
    inner = SOUND.replace("import torch", "import torch\nfrom . import SCORE").replace("0.75", "SCORE")
    (folder / "package" / "inner.py").write_text(inner)
    assert find(load(tmp_path))[1] == 0.625


def test_a_class_of_an_installed_package_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    (packages / "installed_detector").mkdir(parents=True)
    (packages / "installed_detector" / "__init__.py").write_text("")
    (packages / "installed_detector" / "model.py").write_text(SOUND)
    monkeypatch.syspath_prepend(packages)
    models = tmp_path / "models"
    (models / "model").mkdir(parents=True)
    (models / "model" / "framebox.toml").write_text('entry_point = "installed_detector.model:Mine"\n')
    detector = load(models)
    assert find(detector)[1] == 0.75
    (packages / "installed_detector" / "model.py").write_text(SOUND.replace("0.75", "0.25"))
    assert load(models).fingerprint == detector.fingerprint, "what runs is what was imported first"


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ('entry_point = "mine"\n', "entry_point: String should match pattern"),
        ('entry_point = "../mine:Mine"\n', "entry_point: String should match pattern"),
        ('entry_point = "mine:Mine"\nlabels = ["a"]\n', "labels is not one of entry_point"),
        ('entry_point = "absent:Mine"\n', "module absent cannot be imported: ModuleNotFoundError"),
        ('entry_point = "mine:Absent"\n', "module mine has no class Absent"),
        ('entry_point = "mine:torch"\n', "module mine has no class torch"),
    ],
)
def test_a_wrong_entry_point_is_refused(tmp_path: Path, declaration: str, reason: str) -> None:
    write(tmp_path / "model", declaration=declaration)
    with pytest.raises(ModelFault, match=reason):
        load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("import torch", "raise RuntimeError('no licence')", "cannot be imported: RuntimeError: no licence"),
        ("import torch", "import sys; sys.exit(3)", "cannot be imported: SystemExit"),
        ("import torch", "import torch (", "cannot be imported: SyntaxError"),
        ("self.score = 0.75", "1 / 0", "made and tried: ZeroDivisionError: division by zero"),
        ("folder, device", "folder", r"made and tried: TypeError: .*takes 2 positional arguments"),
        ("def detect(", "def find(", "class Mine has no detect"),
        ("def frame_size(", "frame_size = 3\n    def size(", "class Mine has no frame_size"),
        ('class_names = ("thing",)', "", "class Mine has no class_names"),
        ('class_names = ("thing",)', "class_names = ()", "ValueError: class_names is empty"),
        ("batch_size = 4", "batch_size = 0", "ValueError: batch_size is not within 1 and 1024"),
        ("default_min_score = 0.5", "default_min_score = 5", "default_min_score is not within 0 and 1"),
        ("return min(width, 64), min(height, 48)", "return 4000, 3000", "wants frames of 4000 × 3000"),
        ("return min(width, 64), min(height, 48)", "return None", "TypeError"),
        ("return [Detections", "return 3; [Detections", "returned no list of results for 1 frames"),
        ("for _ in range(n)]", "for _ in range(n + 1)]", "returned 2 results for 1 frames"),
        ("torch.tensor([0])", "torch.tensor([1])", "returned a class id outside its 1 names"),
        ("torch.tensor([self.score])", "torch.tensor([torch.nan])", "not a finite number"),
        ("torch.tensor([self.score])", "torch.rand(1)", "other boxes in the same picture each time"),
        ("[[0.0, 0.0,", "[[0.0, 90.0,", "right or bottom edge lies before"),
        ("n, height, width, _ = frames.shape", "frames / 0 + self.weights", "AttributeError: .*weights"),
    ],
)
def test_a_class_that_cannot_serve_is_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in SOUND
    write(tmp_path / "model", SOUND.replace(old, new))
    with pytest.raises(ModelFault, match=reason):
        load(tmp_path)


def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    writes = 'self.score = 0.75\n        (folder / "weights.bin").write_bytes(b"x")'
    write(tmp_path / "model", SOUND.replace("self.score = 0.75", writes))
    with pytest.raises(ModelFault, match="changed while it was loaded"):
        load(tmp_path)


def documented_example() -> str:
    """The example of docs/models.md, as it stands there."""
    page = (CHECKOUT / "docs" / "models.md").read_text()
    found = re.search(r"```python\n(.*?class .*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_documented_example_runs_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine.py").write_text(documented_example())
    (folder / "framebox.toml").write_text('entry_point = "mine:BrightestSpot"\n')
    detector = load(tmp_path)
    frames = torch.zeros(2, 180, 320, 3, dtype=torch.uint8)
    frames[0, 90, 100] = 255
    frames[1, 20, 300] = 255
    with torch.inference_mode():
        first, second = detector.detect(frames)
    assert first.boxes_xyxy.tolist() == [[92, 82, 108, 98]]
    assert second.boxes_xyxy.tolist() == [[292, 12, 308, 28]]
    assert first.scores.tolist() == [1.0]
    assert len(documented_example().strip().splitlines()) <= 30
