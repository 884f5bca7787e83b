"""Model files as served, against a plain script: its own decoding, letterbox, reading and suppression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from app.detection.registry import load_detector

SIDE = 416
CERTAIN_SCORE = 0.5
EVERY = {"one-by-one-person-detection.mp4": 35, "car-detection.mp4": 6}  # which frames are compared

Rows = np.ndarray  # (k, 6): left, top, right, bottom in source pixels, score, class
RunNetwork = Callable[[np.ndarray], np.ndarray]  # (1, 3, 416, 416) to (84, 3549)


@dataclass(frozen=True)
class Comparison:
    compared: int
    agreeing: int

    @property
    def share(self) -> float:
        return self.agreeing / self.compared


def frames_of(video: Path) -> Iterator[np.ndarray]:
    """Yield every few frames, (height, width, 3) uint8 RGB."""
    capture = cv2.VideoCapture(str(video))
    number = 0
    while capture.grab():
        if number % EVERY[video.name] == 0:
            yield cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
        number += 1
    capture.release()


def plain_detections(run: RunNetwork, frame: np.ndarray) -> Rows:
    """What someone would write who runs the network on one frame."""
    height, width, _ = frame.shape
    scale = SIDE / max(height, width)
    small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    picture = np.full((SIDE, SIDE, 3), 114, np.uint8)
    picture[: small.shape[0], : small.shape[1]] = small
    output = run((picture.astype(np.float32) / 255).transpose(2, 0, 1)[None])
    class_ids = output[4:].argmax(axis=0)
    scores = output[4:].max(axis=0)
    x, y, w, h = output[:4]
    rows = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, scores, class_ids], axis=1)
    rows = rows[scores > 0.05]
    rows[:, [0, 2]] = (rows[:, [0, 2]] / scale).clip(0, width)
    rows[:, [1, 3]] = (rows[:, [1, 3]] / scale).clip(0, height)
    kept: list[np.ndarray] = []
    for row in rows[np.argsort(-rows[:, 4])]:
        if all(other[5] != row[5] or overlap(other, row) <= 0.45 for other in kept):
            kept.append(row)
    return np.array(kept).reshape(-1, 6)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.prod((np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])).clip(min=0))
    return float(shared / (np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - shared))


def served_detections(name: str, models: Path, frames: list[np.ndarray]) -> list[Rows]:
    detector = load_detector(name, device="cpu", models_folder=models)
    height, width, _ = frames[0].shape
    size = detector.frame_size(width, height)
    back = np.array([width / size[0], height / size[1]] * 2)
    answers: list[Rows] = []
    for start in range(0, len(frames), detector.batch_size):
        part = frames[start : start + detector.batch_size]
        batch = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in part])
        with torch.inference_mode():
            for found in detector.detect(torch.from_numpy(batch)):
                columns = [found.boxes_xyxy.numpy() * back, found.scores[:, None], found.class_ids[:, None]]
                answers.append(np.concatenate(columns, axis=1))
    return answers


def compare(ones: list[Rows], others: list[Rows]) -> Comparison:
    """How many certain boxes of the one have a box of the same class, all but congruent, in the other."""
    compared = agreeing = 0
    for one, other in zip(ones, others, strict=True):
        for row in one[one[:, 4] > CERTAIN_SCORE]:
            compared += 1
            agreeing += any(row[5] == rival[5] and overlap(row, rival) > 0.95 for rival in other)
    return Comparison(compared, agreeing)


@pytest.fixture(scope="module")
def plain_run(test_data: Path) -> RunNetwork:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several spin while they wait, on cores that others need
    session = onnxruntime.InferenceSession(
        test_data / "models" / "yolox_nano_onnx.onnx", options, providers=["CPUExecutionProvider"]
    )
    return lambda pictures: session.run(None, {"images": pictures})[0][0]


@pytest.mark.parametrize("video", EVERY)
def test_both_files_say_what_a_plain_script_says(test_data: Path, plain_run: RunNetwork, video: str) -> None:
    frames = list(frames_of(test_data / "videos" / video))
    plain = [plain_detections(plain_run, frame) for frame in frames]
    answers = {
        name: served_detections(name, test_data / "models", frames)
        for name in ("yolox_nano_torch", "yolox_nano_onnx")
    }
    pairs = [(plain, answer) for answer in answers.values()] + [tuple(answers.values())]
    for one, other in pairs:
        for comparison in (compare(one, other), compare(other, one)):
            print(video, comparison)  # noqa: T201 - the numbers, with -s
            assert comparison.compared > 10
            assert comparison.share >= 0.99
