"""torchvision's detectors, exported as its documentation says, and their own boxes. Random weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from torch import nn
from torchvision.models import detection

from benchmarks.exporters import random_weights, scenes
from benchmarks.exporters.expected import Box, Exports, frames_of

SIDE = 320
CLASSES = 91
PIPELINE = (
    "Before: RGB in [0, 1], in the frame's own size (inside the network: normalised and resized). "
    "After: nothing; boxes are corners in pixels of the input. "
    "Labels: COCO's 91 category numbers, 0 the background."
)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    builder = getattr(detection, name)
    network = builder(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    pictures = list(scenes.padded_frames(SIDE))
    random_weights.take_statistics(network, lambda: network(pictures))
    if name.startswith("fasterrcnn"):
        heads = [network.rpn.head.cls_logits]
        random_weights.raise_scores(heads, lambda: network(pictures), wanted=50 * len(pictures))
        random_weights.sharpen(network.roi_heads.box_predictor.cls_score, lambda: network(pictures))
    else:
        for head in network.head.classification_head.module_list:
            random_weights.sharpen(head[-1], lambda: network(pictures), groups=CLASSES)
    return network


def found(network: nn.Module, video: Path) -> list[list[Box]]:
    frames = []
    for frame in frames_of(video):
        picture = torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1) / 255
        with torch.no_grad():
            answer = network([picture])
        boxes = answer[1][0] if isinstance(answer, tuple) else answer[0]  # a script returns losses first
        rows = zip(boxes["boxes"], boxes["scores"], boxes["labels"], strict=True)
        frames.append(
            [
                {"label": str(int(class_id)), "score": float(score), "box": box.tolist()}
                for box, score, class_id in rows
            ]
        )
    return frames


def make(exports: Exports) -> None:
    for name in ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"):
        short = name.partition("_")[0]
        files = [f"tv-{short}{end}" for end in (".onnx", "-named.onnx", "-script.torchscript")]
        if all(exports.has(file) for file in files):
            continue
        network = build(name)
        picture = torch.rand(3, SIDE, SIDE)
        for file in files:
            with exports.attempt(file):
                made = exports.scratch / file
                if file.endswith("script"):
                    torch.jit.script(network).save(made)
                    command = "torch.jit.script(network).save(file)"
                else:
                    options: dict[str, object] = {"opset_version": 17, "dynamo": False}
                    if "named" in file:
                        with torch.no_grad():
                            outputs = list(network([picture])[0])
                        options |= {
                            "input_names": ["images"],
                            "output_names": outputs,
                            "dynamic_axes": {"images": {1: "height", 2: "width"}},
                        }
                    torch.onnx.export(network, ([picture],), made, **options)
                    command = f"torch.onnx.export({name}, ([picture],), file, **{options})"
                exports.put(file, made, command=command, pipeline=PIPELINE)
                exports.expect(file, lambda _, video, network=network: found(network, video), ("tall.mp4",))
