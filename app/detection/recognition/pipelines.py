"""What exporters' own pipelines do before and after the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from app.detection.model_formats.declaration import (
    numbered_labels,
)
from app.detection.network_input import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    processor_pixels,
)
from app.detection.network_output import (
    Layout,
)
from app.detection.resize import ResizePolicy


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What an exporter's own pipeline does before and after the network."""

    keys: Mapping[str, object] = field(default_factory=dict)  # of Declaration
    free_keys: Mapping[str, object] = field(default_factory=dict)  # if the input may have any size
    assumed: Mapping[str, str] = field(default_factory=dict)  # what the file does not say, by a key of it


_IMAGENET = MappingProxyType({"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
_SHORT_SIDE = MappingProxyType({"resize": ResizePolicy.SHORT_SIDE, "input": (1333, 800)})
_AS_IS = MappingProxyType({"resize": ResizePolicy.AS_IS, "input": (1333, 800)})

PLAIN = Pipeline(
    assumed={
        "channels": "RGB",
        "white": "colours from 0 to 1",
        "resize": "a letterbox, grey on the right or at the bottom",
    }
)
ULTRALYTICS = Pipeline({"resize": ResizePolicy.LETTERBOX_CENTRE, "max_overlap": 0.7})
ULTRALYTICS_RT_DETR = Pipeline({"resize": ResizePolicy.STRETCH})
YOLOV5 = Pipeline(
    {"resize": ResizePolicy.LETTERBOX_CENTRE},
    assumed={"resize": "letterbox in the centre, as YOLOv5, YOLOv7 and YOLOv9"},
)
YOLOV6 = Pipeline(
    {"resize": ResizePolicy.LETTERBOX_CENTRE}, assumed={"resize": "letterbox in the centre, as YOLOv6"}
)
YOLOX = Pipeline(
    {"white": 255.0, "channels": Channels.BGR, "across_classes": True},
    assumed={"white": "BGR from 0 to 255 in a letterbox, as YOLOX"},
)
RT_DETR = Pipeline(
    {"resize": ResizePolicy.STRETCH}, assumed={"white": "RGB from 0 to 1, as RT-DETR and D-FINE"}
)
RF_DETR = Pipeline(
    {"resize": ResizePolicy.STRETCH_SHARP, "min_score": 0.5, **_IMAGENET},
    assumed={"mean": "mean and std of ImageNet, as RF-DETR"},
)
DETR = Pipeline(
    {"resize": ResizePolicy.STRETCH, "min_score": 0.5, **_IMAGENET},
    _SHORT_SIDE,
    {"mean": "mean and std of ImageNet, as DETR"},
)
MMDEPLOY = Pipeline(
    {
        "min_score": 0.3,
        "channels": Channels.BGR,
        "mean": IMAGENET_MEAN[::-1],
        "std": IMAGENET_STD[::-1],
    },
    {**_SHORT_SIDE, **_IMAGENET, "channels": Channels.RGB},
    {
        "mean": "mean and std of ImageNet, as mmdetection: in BGR if the input has a fixed size (RTMDet), "
        "else in RGB"
    },
)
IN_ITSELF = Pipeline({"resize": ResizePolicy.STRETCH, "min_score": 0.5}, _AS_IS)  # it scales and normalises

BY_OUTPUT: Mapping[tuple[Layout, str], Pipeline] = MappingProxyType(  # by the name of the boxes
    {
        (Layout.SEPARATE, "detection_boxes"): IN_ITSELF,
        (Layout.SEPARATE, "det_boxes"): YOLOV5,
        (Layout.SEPARATE, "dets"): MMDEPLOY,
        (Layout.DETR_SIGMOID, "dets"): RF_DETR,
    }
)


def processor_keys(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the keys of a declaration that a network's and its image processor's settings hold.

    `config`, `settings`: the objects of ``config.json`` and ``preprocessor_config.json`` of Hugging Face.
    """
    keys: dict[str, object] = {"min_score": 0.5}  # as transformers' own pipeline has it
    labels = config.get("id2label")
    numbered = numbered_labels(labels) if isinstance(labels, Mapping) else None
    if numbered:
        keys["labels"] = numbered
    match settings.get("size") if settings.get("do_resize", True) else None:
        case {"height": int(height), "width": int(width)}:
            keys |= {"resize": ResizePolicy.STRETCH, "input": (width, height)}
        case {"shortest_edge": int(short), "longest_edge": int(longest)}:
            keys |= {"resize": ResizePolicy.SHORT_SIDE, "input": (longest, short)}
        case int(short) if isinstance(settings.get("max_size"), int):  # as older versions wrote it
            keys |= {"resize": ResizePolicy.SHORT_SIDE, "input": (settings["max_size"], short)}
    pixels = processor_pixels(settings)
    keys |= {"white": pixels.white, "mean": pixels.mean, "std": pixels.std}
    return keys
