"""Folders of transformers' `save_pretrained` in their usual size, and the boxes of its own image processors.

Runs in the service's own environment, which has the transformers that it serves. The weights are random, with
scores all over [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.exporters.expected import Box, Exports, frames_of

SQUARE: Mapping[str, Any] = {"size": {"height": 640, "width": 640}}
EDGES: Mapping[str, Any] = {"size": {"shortest_edge": 800, "longest_edge": 1333}}
PIPELINE = "Before and after: as its image processor does, `preprocessor_config.json` beside it."

# Weights that begin so small that all queries of a network give one box.
SPREADING = re.compile(
    r"query_(position_embeddings|refpoint)|(decoder\.layers.*|encoder)\.[a-z_]*proj|bbox_predictor|detection_tokens"
)


def _resnet(*stages: str) -> Mapping[str, Any]:
    """Options of a network whose backbone comes without timm."""
    backbone = transformers.ResNetConfig(out_features=list(stages))
    return {"use_timm_backbone": False, "backbone_config": backbone}


def yolos() -> PreTrainedModel:
    config = transformers.YolosConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[800, 1328],
        use_mid_position_embeddings=False,
        initializer_range=0.1,  # or its layers would amplify a difference of one grey level
    )
    return transformers.YolosForObjectDetection(config)


def detr() -> PreTrainedModel:
    return transformers.DetrForObjectDetection(transformers.DetrConfig(**_resnet("stage4")))


def conditional_detr() -> PreTrainedModel:
    config = transformers.ConditionalDetrConfig(**_resnet("stage4"))
    return transformers.ConditionalDetrForObjectDetection(config)


def deformable_detr() -> PreTrainedModel:
    config = transformers.DeformableDetrConfig(**_resnet("stage2", "stage3", "stage4"))
    return transformers.DeformableDetrForObjectDetection(config)


NETWORKS: Mapping[str, tuple[Callable[[], PreTrainedModel], str, Mapping[str, Any]]] = {
    "rt_detr_v2": (
        lambda: transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config()),
        "RTDetrImageProcessorPil",
        SQUARE,
    ),
    "d_fine": (
        lambda: transformers.DFineForObjectDetection(transformers.DFineConfig()),
        "RTDetrImageProcessorPil",
        SQUARE,
    ),
    "deimv2": (
        lambda: transformers.Deimv2ForObjectDetection(transformers.Deimv2Config()),
        "RTDetrImageProcessorPil",
        SQUARE,
    ),
    "yolos": (yolos, "YolosImageProcessorPil", EDGES),
    "detr": (detr, "DetrImageProcessorPil", EDGES),
    "conditional_detr": (conditional_detr, "ConditionalDetrImageProcessorPil", EDGES),
    "deformable_detr": (deformable_detr, "DeformableDetrImageProcessorPil", EDGES),
}


def spread(network: PreTrainedModel) -> None:
    """Give the boxes different places, and scores all over [0, 1]."""
    is_alike = type(network).__name__.startswith(("Conditional", "Detr", "Yolos"))
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "class" in name or "score" in name:
                weights.normal_(std=2.8 / weights.shape[-1] ** 0.5) if weights.ndim > 1 else weights.zero_()
            elif is_alike and weights.ndim > 1 and SPREADING.search(name):
                weights.normal_(std=weights.shape[-1] ** -0.5)


def found(folder: Path, video: Path) -> list[list[Box]]:
    """Return the boxes that someone gets who follows transformers' documentation."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    network = transformers.AutoModelForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()
    frames = []
    for frame in frames_of(video):
        inputs = processor(images=[cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)], return_tensors="pt")
        with torch.inference_mode():
            outputs = network(**inputs)
        boxes = processor.post_process_object_detection(outputs, 0.05, target_sizes=[frame.shape[:2]])[0]
        best = boxes["scores"].argsort(descending=True)[:300]  # as many as the service keeps
        rows = zip(*(boxes[key][best].tolist() for key in ("boxes", "scores", "labels")), strict=True)
        labels = network.config.id2label
        frames.append([{"label": labels[label], "score": score, "box": box} for box, score, label in rows])
    return frames


def make(exports: Exports) -> None:
    for name, (make_network, processor, settings) in NETWORKS.items():
        file = f"huggingface-{name}"
        if exports.has(file):
            continue
        with exports.attempt(file):
            torch.manual_seed(1)
            network = make_network().eval()
            spread(network)
            network.save_pretrained(exports.scratch / file)
            getattr(transformers, processor)(**settings).save_pretrained(exports.scratch / file)
            exports.put(file, exports.scratch / file, command="save_pretrained", pipeline=PIPELINE)
            exports.expect(file, found, ("square.mp4",))
