"""torchvision's detectors, exported as its documentation says, and their own boxes. Random weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from torch import nn
from torchvision.models import detection
from torchvision.transforms.functional import resize

from benchmarks.exporters import random_weights, scenes
from benchmarks.exporters.expected import Box, Exports, frames_of

SIDE = 320
CLASSES = 91
BUILDERS = (
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssd300_vgg16",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
)
PIPELINE = (
    "Before: RGB in [0, 1], in the frame's own size (inside the network: normalised and resized). "
    "After: nothing; boxes are corners in pixels of the input. "
    "Labels: COCO's 91 category numbers, 0 the background."
)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    builder = getattr(detection, name)
    # Less than half their usual size, 800, which takes seconds for a frame on a CPU.
    size = {"min_size": 320, "max_size": 533} if name.endswith("resnet50_fpn") else {}
    network = builder(weights=None, weights_backbone=None, num_classes=CLASSES, **size).eval()
    pictures = list(scenes.padded_frames(SIDE))
    random_weights.take_statistics(network, lambda: network(pictures))

    def run() -> object:
        return network(pictures)

    if name.startswith("fasterrcnn"):
        random_weights.raise_scores([network.rpn.head.cls_logits], run, wanted=50 * len(pictures))
        random_weights.sharpen(network.roi_heads.box_predictor.cls_score, run)
    elif name.startswith("ssd"):
        for head in network.head.classification_head.module_list:
            layer = head[-1] if isinstance(head, nn.Sequential) else head
            random_weights.sharpen(layer, run, groups=CLASSES)
    else:
        random_weights.raise_scores(
            [network.head.classification_head.cls_logits], run, wanted=20 * len(pictures)
        )
    return network


def found(file: Path, video: Path) -> list[list[Box]]:
    """Return what the file gives; for one that takes only squares, the frames are stretched."""
    is_script = file.suffix == ".torchscript"
    script = torch.jit.load(file).eval() if is_script else None
    session = None if is_script else onnxruntime.InferenceSession(file)
    frames = []
    for frame in frames_of(video):
        picture = torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        scale = (1.0, 1.0)
        if "named" not in file.name and session is not None:
            picture = resize(picture, [SIDE, SIDE])
            scale = (frame.shape[1] / SIDE, frame.shape[0] / SIDE)
        if script is not None:
            with torch.no_grad():
                answer = script([picture / 255])[1][0]  # a script returns losses first
            boxes, scores, labels = (answer[key].numpy() for key in ("boxes", "scores", "labels"))
        else:
            values = session.run(None, {session.get_inputs()[0].name: (picture / 255).numpy()})
            # In the order of the network's dictionary, which is another one in RetinaNet.
            labels = next(value for value in values if value.dtype == np.int64)
            boxes = next(value for value in values if value.ndim == 2)
            scores = next(value for value in values if value.ndim == 1 and value is not labels)
        frames.append(
            [
                {"label": str(int(class_id)), "score": float(score), "box": (box * (scale * 2)).tolist()}
                for box, score, class_id in zip(boxes, scores, labels, strict=True)
                if score >= 0.05
            ]
        )
    return frames


def make(exports: Exports) -> None:
    for name in BUILDERS:
        short = name.partition("_")[0]
        files = [f"tv-{short}{end}" for end in (".onnx", "-named.onnx", "-script.torchscript")]
        missing = [file for file in files if not exports.has(file)]
        network = build(name) if missing else None
        for file in missing:
            with exports.attempt(file):
                export(exports, file, name, network)
        for file in files:
            if exports.has(file) and not exports.expects(file):
                with exports.attempt(f"{file}, its boxes"):
                    is_fixed = file == f"tv-{short}.onnx"
                    exports.expect(file, found, ("square.mp4" if is_fixed else "small.mp4",))


def export(exports: Exports, file: str, name: str, network: nn.Module) -> None:
    made, picture = exports.scratch / file, torch.rand(3, SIDE, SIDE)
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
