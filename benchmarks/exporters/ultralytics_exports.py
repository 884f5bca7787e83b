"""Exports of Ultralytics, and the boxes of its own `predict` on them. Nothing is downloaded.

The networks are built from its configuration files. "shapes" ones are trained on drawn shapes: YOLO11n for
some minutes, and the segmentation, pose and oriented-box networks take over all layers that they share with
it. The others have random weights and raised scores.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

os.environ["YOLO_OFFLINE"], os.environ["YOLO_AUTOINSTALL"] = "1", "0"

from ultralytics import RTDETR, YOLO  # noqa: E402
from ultralytics.nn.modules.head import Detect, RTDETRDecoder  # noqa: E402
from ultralytics.utils import YAML  # noqa: E402
from ultralytics.utils.checks import check_yaml  # noqa: E402

from benchmarks.exporters import random_weights, scenes  # noqa: E402
from benchmarks.exporters.expected import Box, Exports  # noqa: E402

LEAST_SCORE = 0.05
SIDE = 320
PIPELINE = (
    "Before: letterbox in the centre, 114, cv2's INTER_LINEAR, RGB in [0, 1]; RT-DETR: stretched. "
    "After: suppression at an overlap of 0.7 within a class, unless it is inside or end-to-end."
)

ONNX = {"format": "onnx"}
SCRIPT = {"format": "torchscript"}
# File: network, arguments of `export`. Here `nms=False` exports the head that needs no suppression.
EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "shapes-yolo11n.onnx": ("shapes-yolo11n", ONNX),
    "shapes-yolo11n-script.torchscript": ("shapes-yolo11n", SCRIPT),
    "shapes-yolo11n-dynamic.onnx": ("shapes-yolo11n", ONNX | {"dynamic": True}),
    "shapes-yolo11n-nms.onnx": ("shapes-yolo11n", ONNX | {"nms": True}),
    "shapes-yolo11n-nms-script.torchscript": ("shapes-yolo11n", SCRIPT | {"nms": True}),
    "shapes-yolo11n-seg.onnx": ("shapes-yolo11n-seg", ONNX),
    "shapes-yolo11n-pose.onnx": ("shapes-yolo11n-pose", ONNX),
    "shapes-yolo11n-obb.onnx": ("shapes-yolo11n-obb", ONNX),
    "shapes-yolo11n-192x320.onnx": ("shapes-yolo11n", ONNX | {"imgsz": (192, 320)}),
    "shapes-yolo11n-seg-nms.onnx": ("shapes-yolo11n-seg", ONNX | {"nms": True}),
    "shapes-yolo11n-pose-nms.onnx": ("shapes-yolo11n-pose", ONNX | {"nms": True}),
    "shapes-yolo11n-obb-nms.onnx": ("shapes-yolo11n-obb", ONNX | {"nms": True}),
    "shapes-yolo11n-nms-dynamic.onnx": ("shapes-yolo11n", ONNX | {"nms": True, "dynamic": True, "batch": 4}),
    "shapes-yolo11n-batch4.onnx": ("shapes-yolo11n", ONNX | {"batch": 4}),
    "shapes-yolo11n-half.onnx": ("shapes-yolo11n", ONNX | {"quantize": 16}),
    "shapes-yolo11n-half-nms.onnx": ("shapes-yolo11n", ONNX | {"quantize": 16, "nms": True}),
    "shapes-yolo11n-int8.onnx": ("shapes-yolo11n", ONNX | {"quantize": 8}),
    "shapes-yolo11n-seg-script.torchscript": ("shapes-yolo11n-seg", SCRIPT),
    "shapes-yolo11n-pose-script.torchscript": ("shapes-yolo11n-pose", SCRIPT),
    "shapes-yolo11n-obb-script.torchscript": ("shapes-yolo11n-obb", SCRIPT),
    "yolo11n-cls.onnx": ("yolo11n-cls", ONNX),
    "yolo11n-384x640.onnx": ("yolo11n", ONNX | {"imgsz": (384, 640)}),
    "yolo11n-opset12.onnx": ("yolo11n", ONNX | {"opset": 12}),
    "yolo11n-unsimplified.onnx": ("yolo11n", ONNX | {"simplify": False}),
    "yolov3-tinyu.onnx": ("yolov3-tiny", ONNX),
    "yolov5nu.onnx": ("yolov5n", ONNX),
    "yolov6n.onnx": ("yolov6n", ONNX),
    "yolov8n.onnx": ("yolov8n", ONNX),
    "yolov9t.onnx": ("yolov9t", ONNX),
    "yolov10n.onnx": ("yolov10n", ONNX | {"nms": False}),
    "yolo12n.onnx": ("yolo12n", ONNX),
    "yolo26n.onnx": ("yolo26n", ONNX),
    "yolo26n-end2end.onnx": ("yolo26n", ONNX | {"nms": False}),
    "yolo26n-end2end-script.torchscript": ("yolo26n", SCRIPT | {"nms": False}),
    "yolo26n-seg-end2end.onnx": ("yolo26n-seg", ONNX | {"nms": False}),
    "yolo26n-pose-end2end.onnx": ("yolo26n-pose", ONNX | {"nms": False}),
    "yolo26n-obb-end2end.onnx": ("yolo26n-obb", ONNX | {"nms": False}),
    "rtdetr-l.onnx": ("rtdetr-l", ONNX | {"imgsz": 640}),
    "rtdetr-l-320.onnx": ("rtdetr-l", ONNX),
    "rtdetr-l-script.torchscript": ("rtdetr-l", SCRIPT),
}
TASKS = {"-seg": "segment", "-pose": "pose", "-obb": "obb", "-cls": "classify"}


def task_of(network: str) -> str:
    return next((task for suffix, task in TASKS.items() if network.endswith(suffix)), "detect")


def make(exports: Exports) -> None:
    for name, (network, options) in EXPORTS.items():
        if not exports.has(name):
            with exports.attempt(name):
                export(name, network, {"imgsz": SIDE} | options, exports)
    for name, (network, options) in EXPORTS.items():
        task, side = task_of(network), options.get("imgsz", SIDE)
        if exports.has(name) and task != "classify" and not exports.expects(name):
            with exports.attempt(f"{name}, its boxes"):
                fitting = "square.mp4" if family_of(network) is RTDETR else "small.mp4"
                of_random = {(384, 640): "wide.mp4", 640: "tall.mp4"}.get(side, fitting)
                is_trained = "shapes" in network and task != "obb"  # whose angles are of a random layer
                videos = ("wide.mp4", "tall.mp4") if is_trained else (of_random,)
                find = functools.partial(predicted, family=family_of(network), side=side, task=task)
                exports.expect(name, find, videos)


def export(name: str, network: str, options: dict[str, Any], exports: Exports) -> None:
    weights = weights_of(network, exports.scratch)
    family = family_of(network)
    if options.get("quantize") == 8:  # it looks at pictures to choose the steps of its whole numbers
        options = options | {"data": str(scenes.write_dataset(exports.scratch / "shapes"))}
    made = Path(family(weights).export(**options))
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    exports.put(name, made, command=f"{family.__name__}({network!r}).export({arguments})", pipeline=PIPELINE)


def family_of(network: str) -> type[YOLO | RTDETR]:
    return RTDETR if network.startswith("rtdetr") else YOLO


def predicted(file: Path, video: Path, family: type[YOLO | RTDETR], side: Any, task: str) -> list[list[Box]]:
    """Return what Ultralytics' own `predict` finds: upright boxes, in pixels of the frame."""
    model = RTDETR(file) if family is RTDETR else YOLO(file, task=task)
    results = model.predict(
        source=str(video), stream=True, conf=LEAST_SCORE, imgsz=side, verbose=False, device="cpu"
    )
    frames = []
    for result in results:
        found = result.obb if task == "obb" else result.boxes
        rows = zip(found.xyxy, found.conf, found.cls, strict=True)
        frames.append(
            [
                {"label": result.names[int(class_id)], "score": float(score), "box": box.tolist()}
                for box, score, class_id in rows
            ]
        )
    return frames


def weights_of(network: str, scratch: Path) -> Path:
    """Return the path of the weights of `network`, made if they are missing."""
    # A name of its own: Ultralytics would look for "yolov5n.pt" on the network.
    weights = scratch / f"weights-{network}.pt"
    if not weights.exists():
        if network == "shapes-yolo11n":
            train(weights, scratch)
        elif network.startswith("shapes-"):
            take_over(network.removeprefix("shapes-"), weights_of("shapes-yolo11n", scratch), weights)
        else:
            build_random(network, weights)
    return weights


def train(weights: Path, scratch: Path) -> None:
    YOLO("yolo11n.yaml").train(
        data=str(scenes.write_dataset(scratch / "shapes")),
        imgsz=scenes.TRAINED_SIDE,
        epochs=12,
        batch=8,
        optimizer="AdamW",
        lr0=0.002,
        warmup_epochs=1.0,
        mosaic=0.0,
        val=False,
        plots=False,
        amp=False,
        workers=0,
        device="cpu",
        seed=0,
        project=str(scratch / "runs"),
        name="shapes-yolo11n",
        exist_ok=True,
    )
    model = YOLO(scratch / "runs" / "shapes-yolo11n" / "weights" / "last.pt")
    for layer in _last_layers(model.model):
        layer.bias.data += 1.0  # so short a training leaves scores low: 0.25 becomes 0.48
    model.save(weights)


def take_over(network: str, trained: Path, weights: Path) -> None:
    """Write `network` with as many classes as `trained` has, and all layers that both have."""
    model = YOLO(f"{network}.yaml")
    names = YOLO(trained).names
    built = type(model.model)(f"{network}.yaml", nc=len(names), verbose=False)
    built.task, built.args, built.names = model.model.task, model.model.args, names
    model.model = built
    model.load(trained)
    model.save(weights)


def build_random(network: str, weights: Path) -> None:
    model = family_of(network)(f"{network}.yaml")
    names = YAML.load(check_yaml("coco.yaml"))["names"]
    model.model.names = {index: names.get(index, str(index)) for index in range(model.model.yaml["nc"])}
    pictures = scenes.padded_frames(SIDE)
    random_weights.take_statistics(model.model, lambda: model.model(pictures))
    random_weights.raise_scores(
        _last_layers(model.model), lambda: model.model(pictures), wanted=8 * len(pictures)
    )
    for layer in _distances(model.model):
        layer.weight.data *= 0.2
        layer.bias.data.fill_(3.0)
    model.save(weights)


def _distances(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers whose outputs are distances to the sides (YOLO26): random ones may be negative."""
    head = network.model[-1]
    if isinstance(head, Detect) and head.reg_max == 1:
        for name in ("cv2", "one2one_cv2"):
            yield from (branch[-1] for branch in getattr(head, name, None) or ())


def _last_layers(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers whose outputs are the logits of the classes."""
    head = network.model[-1]
    if isinstance(head, RTDETRDecoder):
        yield from (head.enc_score_head, *head.dec_score_head)
    elif isinstance(head, Detect):
        for name in ("cv3", "one2one_cv3"):
            yield from (branch[-1] for branch in getattr(head, name, None) or ())
