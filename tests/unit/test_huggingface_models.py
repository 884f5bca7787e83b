"""Folders of Hugging Face: ours against transformers' own processors, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.detection.detector import Detections
from app.detection.network import NetworkDetector
from app.detection.network_output import FLOOR_SCORE
from app.detection.registry import load_detector
from app.errors import ModelFault

# Tests of one file share a checkpoint: making one takes a second.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*meshgrid.*:UserWarning")

transformers = pytest.importorskip("transformers")
from tiny_checkpoints import CHECKPOINTS, LABELS, save_checkpoint, save_processor  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each checkpoint's folder, made when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            save_checkpoint(name, root / name)
        return root / name

    return folder


@pytest.fixture
def copy(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to spoil: model "model" of `tmp_path`."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoints("rt_detr").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()


def pictures(count: int, width: int, height: int) -> np.ndarray:
    """Coloured pictures, each its own, with details that are lost or aliased when they are scaled."""
    random = np.random.default_rng(width)
    small = torch.from_numpy(random.uniform(0, 255, (count, 3, 40, 50)).astype(np.float32))
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic", align_corners=False)
    return large.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


class RfDetrSteps:
    """What the image processor of RF-DETR does, which transformers has only for torchvision.

    It scales floats rather than bytes, and without a filter against aliasing, as cv2 does.
    """

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        self.size = (settings["size"]["width"], settings["size"]["height"])
        self.mean, self.std = settings["image_mean"], settings["image_std"]

    def __call__(self, images: list[np.ndarray], return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        scaled = [cv2.resize(image.astype(np.float32) / 255, self.size) for image in images]
        normalized = (np.stack(scaled) - np.float32(self.mean)) / np.float32(self.std)
        return {"pixel_values": torch.from_numpy(normalized).permute(0, 3, 1, 2)}

    post_process_object_detection = transformers.RTDetrImageProcessorPil.post_process_object_detection


def processor_of(folder: Path) -> Any:
    if "RfDetr" in (folder / "preprocessor_config.json").read_text():
        return RfDetrSteps(folder)
    return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)


def by_transformers(folder: Path, frames: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """What someone gets who follows transformers' documentation."""
    processor = processor_of(folder)
    network = transformers.AutoModelForObjectDetection.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()
    inputs = processor(images=list(frames), return_tensors="pt")
    with torch.inference_mode():
        outputs = network(**inputs)
    sizes = [frame.shape[:2] for frame in frames]
    found: list[dict[str, torch.Tensor]] = processor.post_process_object_detection(
        outputs, threshold=FLOOR_SCORE, target_sizes=sizes
    )
    return found


# Pillow rounds a few pixels otherwise than torch and torchvision, by one level of 255. LW-DETR then takes its
# proposals in another order, which gives each of them another query.
LEAST_SHARES = {"lw_detr": 0.8}


def rows(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    table = torch.cat([boxes, scores[:, None], labels[:, None].float()], dim=1)
    return table.numpy()


def overlap(row: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = np.minimum(row[2:4], others[:, 2:4]) - np.maximum(row[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    areas = [(boxes[..., 2:4] - boxes[..., :2]).prod(axis=-1) for boxes in (row, others)]
    union: np.ndarray = areas[0] + areas[1] - shared
    shares: np.ndarray = shared / union
    return shares


def assert_equal(
    ours: Detections, theirs: dict[str, torch.Tensor], width: int, height: int, least_share: float
) -> None:
    """Nearly every box of the one has its like in the other: random weights magnify a sum's last digit."""
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    clamped = torch.minimum(theirs["boxes"].clamp(min=0), limits)
    has_area = (clamped[:, :2] < clamped[:, 2:]).all(dim=1)
    wanted = rows(clamped[has_area], theirs["scores"][has_area], theirs["labels"][has_area])
    found = rows(ours.boxes_xyxy, ours.scores, ours.class_ids)
    assert len(found) > 3
    for one, other in ((found, wanted), (wanted, found)):
        certain = one[one[:, 4] > FLOOR_SCORE + 0.01]  # what lies on the edge may lie on either side of it
        alike = [
            (
                (other[:, 5] == row[5]) & (overlap(row, other) > 0.95) & (np.abs(other[:, 4] - row[4]) < 0.01)
            ).any()
            for row in certain
        ]
        assert np.mean(alike) >= least_share


def test_every_architecture_but_those_for_documents_is_tried() -> None:
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    assert set(CHECKPOINTS) == {kind for kind in kinds if not kind.startswith(("pp_doclayout", "pp_ocr"))}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("width", "height"), [(192, 160), (320, 180), (181, 240)])
def test_boxes_are_those_of_transformers(
    checkpoints: Callable[[str], Path], name: str, width: int, height: int
) -> None:
    folder = checkpoints(name)
    detector = load_detector(name, device="cpu", models_folder=folder.parent)
    assert detector.class_names == tuple(LABELS.values())
    assert detector.default_min_score == 0.5
    assert detector.frame_size(width, height) == (width, height)
    assert_found_alike(folder, width, height)


def assert_found_alike(folder: Path, width: int, height: int) -> None:
    detector = load_detector(folder.name, device="cpu", models_folder=folder.parent)
    frames = pictures(2, width, height)
    with torch.inference_mode():
        found = detector.detect(torch.from_numpy(frames))
    for ours, theirs in zip(found, by_transformers(folder, frames), strict=True):
        assert_equal(ours, theirs, width, height, LEAST_SHARES.get(folder.name, 0.95))


PADDED = {"do_pad": True, "pad_size": {"height": 224, "width": 256}}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rt_detr", {"size": {"max_height": 160, "max_width": 160}}),
        ("rt_detr", {"size": {"height": 160, "width": 160}, "resample": 3}),
        ("rt_detr", {"size": {"height": 160, "width": 160}, "do_normalize": True}),
        ("detr", {"do_resize": False}),
        ("detr", {"size": {"shortest_edge": 96, "longest_edge": 400}, "rescale_factor": 1 / 127.5}),
        ("detr", {"size": {"shortest_edge": 128, "longest_edge": 200}, **PADDED}),
        ("deformable_detr", {"size": {"height": 160, "width": 160}, **PADDED}),
        ("yolos", {"size": {"height": 96, "width": 128}, **PADDED}),
    ],
)
def test_pictures_are_prepared_as_the_file_says(
    checkpoints: Callable[[str], Path], tmp_path: Path, name: str, settings: dict[str, object]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((checkpoints(name) / file).read_bytes())
    save_processor(CHECKPOINTS[name][1], settings, folder)
    assert_found_alike(folder, 320, 192)


def test_the_declaration_changes_labels_score_and_limit(copy: Path) -> None:
    (copy / "framebox.toml").write_text('labels = ["a", "b", "c"]\nmin_score = 0.1\nmax_boxes = 2\n')
    detector = load_detector("model", device="cpu", models_folder=copy.parent)
    assert detector.class_names == ("a", "b", "c")
    assert detector.default_min_score == 0.1
    with torch.inference_mode():
        (found,) = detector.detect(torch.from_numpy(pictures(1, 192, 160)))
    assert len(found.scores) == 2


def test_weights_in_several_files_are_one_model(copy: Path, checkpoints: Callable[[str], Path]) -> None:
    whole = load_detector("rt_detr", device="cpu", models_folder=checkpoints("rt_detr").parent)
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, copy / file)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    frames = torch.from_numpy(pictures(1, 192, 160))
    with torch.inference_mode():
        (ours,) = load_detector("model", device="cpu", models_folder=copy.parent).detect(frames)
        (wanted,) = whole.detect(frames)
    assert torch.equal(ours.boxes_xyxy, wanted.boxes_xyxy)


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_pickle_of_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelFault) as caught:
        load_detector("model", device="cpu", models_folder=copy.parent)
    assert caught.value.detail == (
        "The folder of model 'model' holds 0 files .safetensors, where one is wanted. Pickles such as "
        "pytorch_model.bin are not opened: save it again with save_pretrained."
    )


def test_a_backbone_of_timm_is_refused(copy: Path) -> None:
    changed(copy / "config.json", model_type="detr", use_timm_backbone=True, backbone_config=None)
    with pytest.raises(ModelFault, match=r"backbone of timm, which is not served; take the variant"):
        load_detector("model", device="cpu", models_folder=copy.parent)


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, r"code of its own \(auto_map\)"),
        ("config.json", {"model_type": "bert"}, "type 'bert', for which transformers has no object detector"),
        ("config.json", {"model_type": None}, "type None"),
        ("config.json", {"d_model": 32}, "are missing or of another shape|transformers cannot load"),
        ("preprocessor_config.json", {"image_processor_type": "Mine"}, "names Mine as its image processor"),
        ("preprocessor_config.json", {"size": {"longest_edge": 640}}, "asks for another size"),
    ],
)
def test_what_cannot_be_served_is_refused(
    copy: Path, file: str, values: dict[str, object], reason: str
) -> None:
    changed(copy / file, **values)
    with pytest.raises(ModelFault, match=reason):
        load_detector("model", device="cpu", models_folder=copy.parent)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"[]", b"\x00" * 64])
def test_a_file_that_is_absent_or_broken_is_named(copy: Path, file: str, content: bytes | None) -> None:
    if content is None:
        (copy / file).unlink()
        (copy / "framebox.toml").write_text("")
    else:
        (copy / file).write_bytes(content)
    with pytest.raises(ModelFault, match=r"model 'model'"):
        load_detector("model", device="cpu", models_folder=copy.parent)


def test_without_such_a_model_transformers_is_not_imported() -> None:
    """It takes seconds and a hundred megabytes."""
    names = "('transformers', 'torchvision', 'onnxruntime')"
    line = f"import sys, app.programs.host; print([name for name in {names} if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", line], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout == "[]\n"


def test_a_missing_package_is_named_with_what_to_install(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as Python does for what is not installed
    with pytest.raises(ModelFault) as caught:
        load_detector("model", device="cpu", models_folder=copy.parent)
    assert caught.value.detail == (
        "Model 'model' is a folder of Hugging Face; to serve it, pip install -r requirements-huggingface.txt."
    )


def test_a_folder_takes_a_precision(copy: Path) -> None:
    (copy / "framebox.toml").write_text('precision = "bfloat16"\nmin_score = 0.05\n')
    detector = load_detector("model", device="cpu", models_folder=copy.parent)
    assert detector.precision == "bfloat16"
    assert isinstance(detector, NetworkDetector)
    assert detector.reference is not None
    frames = torch.from_numpy(pictures(1, 192, 160))
    with torch.inference_mode():
        outputs: list[Any] = [model.output(frames) for model in (detector, detector.reference)]
    few, many = (output["logits"] for output in outputs)
    assert 0 < (few - many).abs().max() < 0.2
