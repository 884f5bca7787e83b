"""Networks with the inputs, outputs and preparation of exporters that cannot be installed beside the others.

mmdeploy, TensorFlow's detection zoo and YOLOv6's `--end2end` are not run here: the trained YOLO11n is
wrapped, so that what goes in and comes out has their names, types, order and meaning. Their own operators
differ in part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms
from ultralytics import YOLO

from benchmarks.exporters import scenes
from benchmarks.exporters.expected import Box, Exports, frames_of
from benchmarks.exporters.ultralytics_exports import weights_of

SIDE = 320
KEPT = 100
MMDET_MEAN, MMDET_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # BGR


class Kept(nn.Module):
    """Finds `KEPT` boxes in a picture, (1, 3, 320, 320) RGB in [0, 1]: best first, padded with zeros."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.network.model[-1].export = True
        self.network.model[-1].format = "onnx"

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.network(pictures)[0].transpose(0, 1)  # (anchors, 4 + C)
        middle, extent = rows[:, :2], rows[:, 2:4]
        boxes = torch.cat((middle - extent / 2, middle + extent / 2), 1)
        scores, labels = rows[:, 4:].max(1)
        scores, order = scores.topk(500)
        boxes, labels = boxes[order], labels[order]
        kept = batched_nms(boxes, scores, labels, 0.5)[:KEPT]
        zeros = torch.zeros(KEPT, dtype=boxes.dtype)
        boxes = torch.cat((boxes[kept], zeros[:, None].expand(KEPT, 4)))[:KEPT]
        scores = torch.cat((scores[kept], zeros))[:KEPT]
        labels = torch.cat((labels[kept], zeros.long()))[:KEPT]
        return boxes, scores, labels  # (k, 4) corners in pixels, (k,), (k,) int64


class MmDeploy(nn.Module):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MMDET_MEAN, MMDET_STD))
        boxes, scores, labels = self.kept(((pictures * std + mean) / 255).flip(1))
        return torch.cat((boxes, scores[:, None]), 1)[None], labels[None]


class DetectionZoo(nn.Module):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        planes = pictures.permute(0, 3, 1, 2).float() / 255
        boxes, scores, labels = self.kept(interpolate(planes, (SIDE, SIDE), mode="bilinear"))
        fractions = boxes[:, [1, 0, 3, 2]] / SIDE
        count = (scores > 0.05).sum().float()[None]
        return fractions[None], labels[None].float() + 1, scores[None], count


class EndToEnd(nn.Module):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        boxes, scores, labels = self.kept(pictures)
        count = (scores > 0.05).sum().int().view(1, 1)
        return count, boxes[None], scores[None], labels[None].int()


def mmdet_input(frame: np.ndarray) -> tuple[np.ndarray, Any]:
    square, scale, _ = _letterbox(frame, centred=False)
    values = (square.astype(np.float32) - MMDET_MEAN) / MMDET_STD
    return values.transpose(2, 0, 1)[None].astype(np.float32), lambda box: box / scale


def zoo_input(frame: np.ndarray) -> tuple[np.ndarray, Any]:
    height, width, _ = frame.shape
    return frame[None, :, :, ::-1], lambda box: box[[1, 0, 3, 2]] * (width, height, width, height)


def yolo_input(frame: np.ndarray) -> tuple[np.ndarray, Any]:
    square, scale, corner = _letterbox(frame, centred=True)
    values = square[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    return values, lambda box: (box - np.tile(corner, 2)) / scale


def _letterbox(frame: np.ndarray, *, centred: bool) -> tuple[np.ndarray, float, tuple[int, int]]:
    scale = SIDE / max(frame.shape)
    small = cv2.resize(frame, None, fx=scale, fy=scale)
    height, width, _ = small.shape
    top, left = ((SIDE - height) // 2, (SIDE - width) // 2) if centred else (0, 0)
    square = np.full((SIDE, SIDE, 3), 114, np.uint8)
    square[top : top + height, left : left + width] = small
    return square, scale, (left, top)


# File: wrapper, example, input, outputs, free dimensions of the input, what prepares a frame
EXPORTS: dict[str, tuple[Any, Tensor, str, list[str], dict[int, str], Any]] = {
    "like-mmdeploy.onnx": (
        MmDeploy,
        torch.zeros(1, 3, SIDE, SIDE),
        "input",
        ["dets", "labels"],
        {},
        mmdet_input,
    ),
    "like-tensorflow-zoo.onnx": (
        DetectionZoo,
        torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8),
        "input_tensor",
        ["detection_boxes", "detection_classes", "detection_scores", "num_detections"],
        {1: "height", 2: "width"},
        zoo_input,
    ),
    "like-yolov6-end2end.onnx": (
        EndToEnd,
        torch.zeros(1, 3, SIDE, SIDE),
        "images",
        ["num_dets", "det_boxes", "det_scores", "det_classes"],
        {},
        yolo_input,
    ),
}
FIRST_CLASS = {"like-tensorflow-zoo.onnx": 1}


def make(exports: Exports) -> None:
    missing = [name for name in EXPORTS if not exports.has(name)]
    if not missing:
        return
    weights = weights_of("shapes-yolo11n", exports.scratch)
    for name in missing:
        wrapper, example, input_name, outputs, free, prepare = EXPORTS[name]
        with exports.attempt(name):
            made = exports.scratch / name
            torch.onnx.export(
                wrapper(Kept(YOLO(weights).model.float())).eval(),
                (example,),
                made,
                input_names=[input_name],
                output_names=outputs,
                dynamic_axes={input_name: free} if free else None,
                opset_version=17,
                dynamo=False,
            )
            model = onnx.load(made)
            del model.metadata_props[:]
            if "tensorflow" in name:
                model.producer_name = "tf2onnx"
            onnx.save(model, made)
            exports.put(name, made, command="wrapped here", pipeline=(prepare.__name__))
            exports.expect(name, lambda file, video, name=name: found(file, video, name))


def found(file: Path, video: Path, name: str) -> list[list[Box]]:
    """Return what the file gives for frames that are prepared as its exporter's own pipeline does."""
    _, _, input_name, outputs, _, prepare = EXPORTS[name]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    frames = []
    for frame in frames_of(video):
        values, place = prepare(frame)
        answer = dict(zip(outputs, session.run(outputs, {input_name: values}), strict=True))
        boxes = next(answer[key][0] for key in ("dets", "detection_boxes", "det_boxes") if key in answer)
        labels = next(
            answer[key][0] for key in ("labels", "detection_classes", "det_classes") if key in answer
        )
        scores = (
            boxes[:, 4] if "dets" in answer else next(answer[key][0] for key in answer if "scores" in key)
        )
        frames.append(
            [
                {
                    "label": scenes.LABELS[int(label) - FIRST_CLASS.get(name, 0)],
                    "score": float(score),
                    "box": [float(value) for value in place(box[:4])],
                }
                for box, score, label in zip(boxes, scores, labels, strict=True)
                if score >= 0.05
            ]
        )
    return frames
