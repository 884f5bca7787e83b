"""Networks in 16 bits, on the CPU, by the code that a GPU runs: what they find, and when they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported_networks import Yolo, as_onnx, as_pt2, as_torchscript
from torch import Tensor, nn

from app.detection.detector import Detector
from app.detection.golden import SCENE_COUNT, golden_scenes
from app.detection.measuring import MemoryMeter, measure_effect
from app.detection.model_files import hash_model
from app.detection.model_pool import NO_BUDGET
from app.detection.network import NetworkDetector
from app.detection.precision import Precision, choose_precision
from app.detection.registry import load_detector
from app.detection.trial import try_model
from app.errors import ModelFault
from app.settings import SettingsFault, load_settings

Write = Callable[[nn.Module], bytes]


class Convolving(Yolo):
    """Its brightness, a score, comes from a convolution, which is what 16 bits change."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.convolution = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.convolution.weight, gain / 3)

    def brightness(self, pictures: Tensor) -> Tensor:
        convolved: Tensor = self.convolution(pictures)
        return convolved.float().mean(dim=(1, 2, 3)) / self.gain


class Mixing(Convolving):
    """Writes what it computed into numbers of the format that its input has."""

    def brightness(self, pictures: Tensor) -> Tensor:
        mixed = torch.zeros_like(pictures[:, :1])
        rows = torch.arange(mixed.shape[2])
        mixed[:, :, rows] = self.convolution(pictures)
        return mixed.mean(dim=(1, 2, 3))


def load(folder: Path, precision: str | None, write: Write, network: nn.Module) -> Detector:
    suffixes: dict[Write, str] = {as_pt2: ".pt2", as_torchscript: ".torchscript", as_onnx: ".onnx"}
    (folder / f"model{suffixes[write]}").write_bytes(write(network))
    if precision is not None:
        (folder / "model.toml").write_text(f'precision = "{precision}"\n')
    return load_detector("model", device="cpu", models_folder=folder)


def scores(detector: Detector) -> Tensor:
    with torch.inference_mode():
        return torch.cat([detector.detect(scene[None])[0].scores for scene in golden_scenes(96, 64)])


@pytest.mark.parametrize(
    ("device", "declared", "setting", "chosen"),
    [
        ("cpu", None, "float16", "float32"),
        ("cuda:0", None, "float16", "float16"),
        ("cuda:0", "float32", "float16", "float32"),
        ("cuda:1", "bfloat16", "float32", "bfloat16"),
        ("cpu", "bfloat16", "float32", "bfloat16"),
    ],
)
def test_a_declaration_goes_before_the_setting_which_is_for_gpus(
    device: str, declared: str | None, setting: str, chosen: str
) -> None:
    known = None if declared is None else Precision(declared)
    assert choose_precision(device, declared=known, setting=Precision(setting)) == chosen


def test_a_setting_that_is_no_precision_is_refused() -> None:
    with pytest.raises(SettingsFault, match="FRAMEBOX_PRECISION"):
        load_settings(precision="half")


def test_fewer_bits_make_another_model_with_nearly_the_same_boxes(tmp_path: Path) -> None:
    plain = load(tmp_path, None, as_pt2, Convolving())
    lowered = load(tmp_path, "bfloat16", as_pt2, Convolving())
    assert (plain.precision, lowered.precision) == ("float32", "bfloat16")
    difference = (scores(lowered) - scores(plain)).abs().max().item()
    assert 1e-5 < difference < 0.01
    whole = load(tmp_path, "float32", as_pt2, Convolving())
    assert len({plain.fingerprint, lowered.fingerprint, whole.fingerprint}) == 3
    assert torch.equal(scores(whole), scores(plain))


def test_the_setting_makes_another_model_of_the_same_files(tmp_path: Path) -> None:
    detector = load(tmp_path, None, as_pt2, Convolving())
    assert isinstance(detector, NetworkDetector)
    names = {detector.lowered(precision).fingerprint for precision in Precision}
    assert len(names | {detector.fingerprint}) == 4
    assert all(len(name) == 64 for name in names)


def test_the_effect_on_the_boxes_is_measured_once_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    load(folder, "bfloat16", as_pt2, Convolving())
    (file,) = folder.glob("model.pt2")
    content = hash_model("model", file)
    verdict = try_model(
        content, device="cpu", precision=Precision.FLOAT32, budget=NO_BUDGET, runtime="a test"
    )
    assert verdict.facts is not None
    effect = verdict.facts.precision_effect
    assert effect is not None
    assert effect.boxes == effect.matched == 2 * SCENE_COUNT
    assert 0 < effect.score_difference < 0.01
    assert effect.box_difference_pixels == 0


def test_a_float32_model_has_no_effect_to_tell(tmp_path: Path) -> None:
    detector = load(tmp_path, None, as_pt2, Convolving())
    assert isinstance(detector, NetworkDetector)
    assert detector.reference is None
    same = measure_effect(detector, detector)
    assert same.boxes == same.matched == 2 * SCENE_COUNT
    assert (same.score_difference, same.box_difference_pixels) == (0, 0)


def test_boxes_that_16_bits_move_or_lose_are_counted(tmp_path: Path) -> None:
    """Against the network of another box, which has a score of its own."""

    class Elsewhere(Yolo):
        def box(self, count: int) -> Tensor:
            return torch.tensor([54.0, 32.0, 40.0, 20.0]).expand(count, 4)

    one = load(tmp_path, None, as_pt2, Yolo())
    other = load(tmp_path, None, as_pt2, Elsewhere())
    effect = measure_effect(one, other)
    assert effect.boxes == 2 * SCENE_COUNT
    assert effect.matched == 0
    assert effect.box_difference_pixels == pytest.approx(6 * 1280 / 96, rel=0.1)


def test_numbers_too_large_for_float16_refuse_the_model_and_say_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFault,
        match=r'not finite\. It computes in float16: write precision = "bfloat16" or ',
    ):
        load(tmp_path, "float16", as_pt2, Convolving(gain=1e6))
    assert load(tmp_path, "bfloat16", as_pt2, Convolving(gain=1e6)).precision == "bfloat16"


def test_a_network_that_fails_in_16_bits_is_refused_and_told_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFault, match=r"fails on a batch of 1: RuntimeError.*It computes in bfloat16: write precision = "
    ):
        load(tmp_path, "bfloat16", as_pt2, Mixing())
    assert load(tmp_path, "float32", as_pt2, Mixing()).precision == "float32"


@pytest.mark.parametrize("write", [as_onnx, as_torchscript])
def test_a_format_with_a_precision_of_its_own_is_not_given_another(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ModelFault, match=r"in float32, as its file has it, but precision = 'float16'.*\.pt2"):
        load(tmp_path, "float16", write, Convolving())
    assert load(tmp_path, "float32", write, Convolving()).precision == "float32"


def test_a_network_of_half_precision_stays_so(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(as_pt2(Yolo(), dtype=torch.float16))
    (tmp_path / "model.toml").write_text('precision = "float32"\n')
    with pytest.raises(ModelFault, match=r"in float16, as its file has it, but precision = 'float32'"):
        load_detector("model", device="cpu", models_folder=tmp_path)
    (tmp_path / "model.toml").write_text('precision = "float16"\n')
    assert load_detector("model", device="cpu", models_folder=tmp_path).precision == "float16"


def test_a_network_on_a_gpu_takes_the_setting(tmp_path: Path, cuda: str) -> None:
    (tmp_path / "model.pt2").write_bytes(as_pt2(Convolving()))
    detector = load_detector("model", device=cuda, models_folder=tmp_path, precision=Precision.FLOAT16)
    assert detector.precision == "float16"
    assert isinstance(detector, NetworkDetector)
    assert detector.reference is not None
    effect = measure_effect(detector, detector.reference)
    assert effect.matched == effect.boxes == 2 * SCENE_COUNT
    assert MemoryMeter(cuda).cost().device_bytes >= 0
