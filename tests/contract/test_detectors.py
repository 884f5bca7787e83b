"""What every detector has to do, run on each, and on a GPU too where there is one.

A new detector is one line in DETECTORS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exported_networks import Yolo, as_onnx, as_pt2, as_torchscript
from tiny_checkpoints import save_checkpoint
from torch import Tensor

from app.detection.checks import check_batch
from app.detection.detector import Detections, Detector
from app.detection.device import DeviceThread
from app.detection.devices import make_ready
from app.detection.hog import OPENCV_PARAMETERS, HogPeopleDetector
from app.detection.measuring import MemoryMeter, measure
from app.detection.none import NoneDetector
from app.detection.registry import describe_detector, load_detector

# Frames of equal content may be computed in other batches than last time (the end of a segment, a device
# short of memory), and matrix products sum in another order then.
BOX_TOLERANCE_PIXELS = 0.01
SCORE_TOLERANCE = 1e-4


class BrightestSquare:
    """A fake: one box around the brightest of the frame's 8 × 8 squares, scored by its brightness."""

    name = "brightest-square"
    fingerprint = "f" * 64
    class_names = ("square",)
    default_min_score = 0.1
    batch_size = 4
    device = "cpu"
    precision = "float32"
    takes_device_frames = True

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return min(width, 64), min(height, 64)

    def detect(self, frames: Tensor) -> list[Detections]:
        return [self._detect(frame.float().mean(dim=2)) for frame in frames]

    def _detect(self, grey: Tensor) -> Detections:
        height, width = grey.shape
        if height < 8 or width < 8:
            return Detections.empty()
        squares = torch.nn.functional.avg_pool2d(grey[None, None], 8)[0, 0]
        best = int(squares.argmax())
        top, left = 8.0 * (best // squares.shape[1]), 8.0 * (best % squares.shape[1])
        box = torch.tensor([[left, top, left + 8, top + 8]])
        return Detections(box, squares.reshape(1, -1).amax(dim=1) / 255, torch.zeros(1, dtype=torch.int64))


DETECTORS: dict[str, Callable[[str], Detector]] = {
    "brightest-square": lambda _: BrightestSquare(),
    "hog-people": HogPeopleDetector,
    "hog-people, every window": lambda device: HogPeopleDetector(
        device, replace(OPENCV_PARAMETERS, min_margin=-1.0)
    ),
    "none": NoneDetector,
}


MODELS = ("yolox_nano_torch", "yolox_nano_onnx")  # in the test data: torch.export, ONNX

ENTRY_POINT = """
import torch
from app.detection.detector import Detections

class LeftHalf:
    class_names = ("half",)
    default_min_score = 0.5
    batch_size = 3
    precision = "float32"

    def __init__(self, folder, device):
        self.device = device

    def frame_size(self, width, height):
        return min(width, 32), min(height, 32)

    def detect(self, frames):
        n, height, width, _ = frames.shape
        box = torch.tensor([[0.0, 0.0, width / 2, float(height)]])
        return [Detections(box.clone(), torch.tensor([0.9]), torch.tensor([0])) for _ in range(n)]
"""


def make_entry_point(folder: Path) -> None:
    (folder / "made").mkdir()
    (folder / "made" / "halves.py").write_text(ENTRY_POINT)
    (folder / "made" / "framebox.toml").write_text('entry_point = "halves:LeftHalf"\n')


# A model of each format that is made here: writes model "made" into a folder.
FORMATS: dict[str, Callable[[Path], object]] = {
    "torch.export": lambda folder: (folder / "made.pt2").write_bytes(as_pt2(Yolo())),
    "TorchScript": lambda folder: (folder / "made.torchscript").write_bytes(as_torchscript(Yolo())),
    "ONNX": lambda folder: (folder / "made.onnx").write_bytes(as_onnx(Yolo())),
    "ONNX, one frame a batch": lambda folder: (folder / "made.onnx").write_bytes(as_onnx(Yolo(), batch=1)),
    "Hugging Face, one size": lambda folder: save_checkpoint("rt_detr", folder / "made"),
    "Hugging Face, any size": lambda folder: save_checkpoint("detr", folder / "made"),
    "entry point": make_entry_point,
}


# Where there is none, `test_the_suite_runs_on_a_gpu` tells.
CUDA = pytest.param("cuda:0", marks=pytest.mark.cuda)
DEVICES = ("cpu", CUDA) if torch.cuda.is_available() else ("cpu",)


def has_runtime(name: str, device: str) -> bool:
    """Whether what runs model `name` can use `device`: onnxruntime is another package for GPUs."""
    if "onnx" not in name.lower() or device == "cpu":
        return True
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    make_ready(request.param)
    return str(request.param)


@pytest.fixture(scope="module", params=[*DETECTORS, *MODELS, *FORMATS])
def detector(
    request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory
) -> Detector:
    if not has_runtime(request.param, device):
        pytest.skip("this onnxruntime is for the CPU; requirements-onnx-gpu.txt has another")
    if request.param in DETECTORS:
        return DETECTORS[request.param](device)
    if request.param in FORMATS:
        made = tmp_path_factory.mktemp("models")
        FORMATS[request.param](made)
        return load_detector("made", device=device, models_folder=made)
    folder = request.getfixturevalue("test_data") / "models"
    return load_detector(request.param, device=device, models_folder=folder)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise with upright white bars: something that detectors find things in."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for left in range(20 + 5 * seed, width, 70):
        noise[height // 4 :, left : left + 24] = 255
    return noise


def batch(count: int, width: int = 200, height: int = 260) -> np.ndarray:
    return np.stack([picture(width, height, seed) for seed in range(count)])


def detect(detector: Detector, frames: np.ndarray, *, place: str = "cpu") -> list[Detections]:
    """What the protocol promises holds for what comes out, or this fails. `place`: where the frames lie."""
    with torch.inference_mode():
        outputs = detector.detect(torch.from_numpy(frames).to(place))
    checked, dropped_box_count = check_batch(
        detector.name, outputs, torch.from_numpy(frames), len(detector.class_names)
    )
    assert dropped_box_count == 0
    for before, after in zip(outputs, checked, strict=True):
        assert torch.equal(before.boxes_xyxy, after.boxes_xyxy), "not inside the frame, or not best first"
        assert torch.equal(before.scores, after.scores)
    return outputs


def assert_same(one: list[Detections], other: list[Detections]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.boxes_xyxy.shape == b.boxes_xyxy.shape
        torch.testing.assert_close(a.boxes_xyxy, b.boxes_xyxy, atol=BOX_TOLERANCE_PIXELS, rtol=0)
        torch.testing.assert_close(a.scores, b.scores, atol=SCORE_TOLERANCE, rtol=0)
        assert torch.equal(a.class_ids, b.class_ids)


def test_the_suite_has_something_to_compare() -> None:
    for name in ("brightest-square", "hog-people, every window"):
        assert all(len(found.scores) for found in detect(DETECTORS[name]("cpu"), batch(4)))


def test_the_suite_runs_on_a_gpu(cuda: str) -> None:
    assert CUDA in DEVICES


def test_it_says_what_it_is(detector: Detector, device: str) -> None:
    assert detector.name
    assert len(detector.fingerprint) == 64
    assert set(detector.fingerprint) <= set("0123456789abcdef")
    assert detector.batch_size >= 1
    assert 0 <= detector.default_min_score <= 1
    assert detector.device in (device, BrightestSquare.device)
    assert isinstance(getattr(torch, detector.precision), torch.dtype)
    assert len(set(detector.class_names)) == len(detector.class_names)


def test_the_same_batch_gives_the_same_bits(detector: Detector) -> None:
    frames = batch(min(3, detector.batch_size))
    for one, other in zip(detect(detector, frames), detect(detector, frames.copy()), strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)


def test_frames_on_its_device_give_the_same_bits(detector: Detector) -> None:
    frames = batch(min(3, detector.batch_size))
    place = detector.device if detector.takes_device_frames else "cpu"
    ahead = detect(detector, frames, place=place)
    for one, other in zip(detect(detector, frames), ahead, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)


def test_frames_alone_give_what_they_give_together(detector: Detector) -> None:
    frames = batch(detector.batch_size)
    alone = [found for frame in frames for found in detect(detector, frame[None])]
    assert_same(detect(detector, frames), alone)


def test_the_place_in_the_batch_does_not_matter(detector: Detector) -> None:
    frames = batch(min(4, detector.batch_size))
    assert_same(detect(detector, frames), detect(detector, frames[::-1].copy())[::-1])


def test_the_frames_are_left_as_they_were(detector: Detector) -> None:
    frames = batch(min(2, detector.batch_size))
    before = frames.copy()
    detect(detector, frames)
    assert np.array_equal(frames, before)


def test_the_answer_does_not_share_the_frames_memory(detector: Detector) -> None:
    frames = batch(min(2, detector.batch_size))
    answer = detect(detector, frames)
    kept = [(found.boxes_xyxy.clone(), found.scores.clone()) for found in answer]
    frames[:] = 0
    detect(detector, frames)
    for found, (boxes, scores) in zip(answer, kept, strict=True):
        assert torch.equal(found.boxes_xyxy, boxes)
        assert torch.equal(found.scores, scores)


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 300), (300, 1), (2, 2), (16, 16), (63, 127), (64, 128), (65, 129), (101, 203), (639, 17)],
)
def test_odd_tiny_and_long_frames_are_taken(detector: Detector, width: int, height: int) -> None:
    count = min(2, detector.batch_size)
    assert len(detect(detector, batch(count, width, height))) == count


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_frames_are_taken(detector: Detector, level: int) -> None:
    detect(detector, np.full((1, 200, 200, 3), level, np.uint8))


@pytest.mark.parametrize(
    ("width", "height"),
    [(1920, 1080), (1080, 1920), (3, 2), (1, 1), (16384, 16), (16, 16384), (8192, 4320), (641, 481)],
)
def test_the_frame_size_it_wants_is_no_larger_and_of_that_shape(
    detector: Detector, width: int, height: int
) -> None:
    wanted_width, wanted_height = detector.frame_size(width, height)
    assert 1 <= wanted_width <= width
    assert 1 <= wanted_height <= height
    assert detector.frame_size(wanted_width, wanted_height) == (wanted_width, wanted_height)


def test_a_device_thread_gives_what_it_gives(detector: Detector) -> None:
    frames = batch(min(2, detector.batch_size))
    with DeviceThread(detector) as thread:
        assert_same(thread.submit(frames).result(60), detect(detector, frames))


def test_it_can_be_described(detector: Detector) -> None:
    profile = measure(detector, MemoryMeter(detector.device))
    facts = describe_detector(detector, profile, "a test")
    assert facts.labels == tuple(detector.class_names)
    assert facts.frames_per_second > 0
