"""RF-DETR's own export, from a network with random weights, and the boxes of its own `predict`."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import cv2
import torch
from rfdetr import RFDETRNano
from rfdetr.models.backbone import dinov2

from benchmarks.exporters import random_weights, scenes
from benchmarks.exporters.expected import Box, Exports, frames_of

PIPELINE = (
    "Before: stretched, bilinear without antialiasing, RGB in [0, 1], ImageNet's mean and deviation. "
    "After: sigmoid, the best 300 of all queries and classes, no suppression. "
    "Labels: COCO's 91 category numbers, not in the file."
)


def build() -> RFDETRNano:
    torch.manual_seed(0)
    plain = dinov2.DinoV2.__init__

    def without_download(*arguments: object, **options: object) -> None:
        plain(*arguments, **options | {"load_dinov2_weights": False})

    with mock.patch.object(dinov2.DinoV2, "__init__", without_download):
        model = RFDETRNano(pretrain_weights=None, device="cpu")
    network = model.model.model.eval()
    pictures = scenes.padded_frames(model.model.resolution) - 0.45
    heads = [
        module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and "class_embed" in name
    ]
    random_weights.raise_scores(heads, lambda: network(pictures * 4), wanted=20 * len(pictures))
    return model


def predicted(model: RFDETRNano, video: Path) -> list[list[Box]]:
    names = model.class_names
    frames = []
    for frame in frames_of(video):
        found = model.predict(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), threshold=0.05)
        frames.append(
            [
                {"label": str(class_id), "score": float(score), "box": box.tolist()}
                for box, score, class_id in zip(found.xyxy, found.confidence, found.class_id, strict=True)
            ]
        )
    del names
    return frames


def make(exports: Exports) -> None:
    variants = {"rf-detr-nano.onnx": {}, "rf-detr-nano-dynamic.onnx": {"dynamic_batch": True}}
    missing = [name for name in variants if not exports.has(name)]
    if not missing:
        return
    model = build()
    for name in missing:
        with exports.attempt(name):
            made = model.export(output_dir=str(exports.scratch / "rfdetr"), verbose=False, **variants[name])
            command = f"RFDETRNano(pretrain_weights=None).export(**{variants[name]})"
            exports.put(name, Path(made), command=command, pipeline=PIPELINE)
            exports.expect(name, lambda _, video: predicted(model, video), ("tall.mp4",))
