"""Weights of torchvision's detection models. Most needs torchvision, which has to be built for this torch."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from app.detection.model_formats.torchvision_models import read_weights
from app.detection.registry import load_detector
from app.errors import ModelFault

LABELS = ("__background__", "person", "car")
DECLARATION = 'architecture = "{}"\nlabels = ["__background__", "person", "car"]\nmin_score = 0.05\n'


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    """Skips where it is absent or built for another torch, unless FRAMEBOX_REQUIRE_TORCHVISION is set."""
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        reason = f"no torchvision for this torch: {error}; FRAMEBOX_REQUIRE_TORCHVISION=1 where there must be"
        if os.environ.get("FRAMEBOX_REQUIRE_TORCHVISION", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)


ARCHITECTURES = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_boxes_are_those_of_torchvision(torchvision: ModuleType, tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(
        architecture, weights=None, weights_backbone=None, num_classes=len(LABELS)
    ).eval()
    torch.save(network.state_dict(), tmp_path / "model.pth")
    (tmp_path / "model.toml").write_text(DECLARATION.format(architecture))
    detector = load_detector("model", device="cpu", models_folder=tmp_path)
    assert detector.class_names == LABELS
    width, height = detector.frame_size(1280, 720)
    pictures = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    frames = torch.from_numpy(pictures)
    with torch.inference_mode():
        wanted = network(list(frames.permute(0, 3, 1, 2).float() / 255))
        found = detector.detect(frames)
    for ours, theirs in zip(found, wanted, strict=True):
        kept = theirs["scores"] >= 0.05
        torch.testing.assert_close(ours.scores, theirs["scores"][kept], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.boxes_xyxy, theirs["boxes"][kept], atol=0.05, rtol=0)
        assert torch.equal(ours.class_ids, theirs["labels"][kept])


def test_an_unknown_architecture_or_wrong_weights_are_refused(
    torchvision: ModuleType, tmp_path: Path
) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.pth")
    (tmp_path / "model.toml").write_text(DECLARATION.format("resnet50"))
    with pytest.raises(ModelFault, match=r"'resnet50'; torchvision has .*fasterrcnn_resnet50_fpn"):
        load_detector("model", device="cpu", models_folder=tmp_path)
    (tmp_path / "model.toml").write_text(DECLARATION.format("ssdlite320_mobilenet_v3_large"))
    with pytest.raises(ModelFault, match="are not those of a ssdlite320_mobilenet_v3_large with 3 labels"):
        load_detector("model", device="cpu", models_folder=tmp_path)


# ---- without torchvision


def test_a_declaration_has_to_name_architecture_and_labels(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ModelFault) as caught:
        load_detector("model", device="cpu", models_folder=tmp_path)
    assert caught.value.detail == (
        "Model 'model' does not say what its output means: architecture is missing; labels is missing. "
        "Write it in framebox.toml."
    )


def test_without_torchvision_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as Python does for what is not installed
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.pth")
    (tmp_path / "model.toml").write_text(DECLARATION.format("ssd300_vgg16"))
    with pytest.raises(ModelFault, match=r"to serve it, pip install torchvision==0\.28\.0"):
        load_detector("model", device="cpu", models_folder=tmp_path)


def test_a_torchvision_of_another_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the wheel for CUDA fails on a CPU build of torch: its import raises RuntimeError."""
    (tmp_path / "packages" / "torchvision").mkdir(parents=True)
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (tmp_path / "packages" / "torchvision" / "__init__.py").write_text(broken)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    models = tmp_path / "models"
    models.mkdir()
    torch.save({"x": torch.zeros(1)}, models / "model.pth")
    (models / "model.toml").write_text(DECLARATION.format("ssd300_vgg16"))
    with pytest.raises(ModelFault, match=r"is not built for torch .*Install both from the same index"):
        load_detector("model", device="cpu", models_folder=models)


class Runs:
    """What a hostile pickle holds: something that is called when it is opened."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Runs()}, tmp_path / "model.pth")
    with pytest.raises(ModelFault, match=r"is not a file of weights only \(UnpicklingError\)"):
        read_weights("model", (tmp_path / "model.pth").read_bytes())
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_what_is_no_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(ModelFault, match="is not a file of weights only"):
        read_weights("model", content)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_weights_lie_open_or_in_a_checkpoint(tmp_path: Path, key: str | None) -> None:
    weights = {"a": torch.ones(2)}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "file.pth")
    assert torch.equal(read_weights("model", (tmp_path / "file.pth").read_bytes())["a"], weights["a"])


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ModelFault, match="holds no state dict"):
        read_weights("model", (tmp_path / "file.pth").read_bytes())
