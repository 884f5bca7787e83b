"""Hugging Face networks as optimum exports them to ONNX, and the boxes of their own image processors.

Runs in an environment of its own (`requirements-optimum.txt`): optimum needs an older transformers. The
networks are small, with random weights and raised scores.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import onnxruntime
import torch
from optimum.exporters.onnx import main_export
from PIL import Image
from transformers import (
    AutoImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ModelOutput

from benchmarks.exporters import random_weights, scenes
from benchmarks.exporters.expected import Box, Exports, frames_of

LABELS = {0: "square", 1: "circle", 2: "triangle"}
NAMES = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
PIPELINE = "Before and after: as its image processor does, `preprocessor_config.json` beside it."


def detr() -> tuple[PreTrainedModel, BaseImageProcessor]:
    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=50,
        **NAMES,
    )
    return DetrForObjectDetection(config), DetrImageProcessor(
        size={"shortest_edge": 320, "longest_edge": 533}
    )


def yolos() -> tuple[PreTrainedModel, BaseImageProcessor]:
    config = YolosConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=[320, 576],
        num_detection_tokens=50,
        use_mid_position_embeddings=False,
        **NAMES,
    )
    return YolosForObjectDetection(config), YolosImageProcessor(
        size={"shortest_edge": 320, "longest_edge": 576}
    )


def rt_detr() -> tuple[PreTrainedModel, BaseImageProcessor]:
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        use_pretrained_backbone=False,
        backbone=None,
        encoder_in_channels=[64, 96, 128],
        encoder_hidden_dim=64,
        d_model=64,
        decoder_in_channels=[64, 64, 64],
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        decoder_layers=2,
        num_queries=100,
        anchor_image_size=None,
        **NAMES,
    )
    return RTDetrForObjectDetection(config), RTDetrImageProcessor(size={"height": 320, "width": 320})


def build(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    torch.manual_seed(0)
    network, processor = {"detr": detr, "yolos": yolos, "rt-detr": rt_detr}[name]()
    network.eval()
    frames = list((scenes.padded_frames(320) * 255).byte())
    pictures = processor(images=frames, return_tensors="pt")["pixel_values"]

    def run() -> object:
        return network(pictures)

    random_weights.take_statistics(network, run)
    if name == "rt-detr":
        heads = {id(head): head for head in (network.model.enc_score_head, *network.class_embed)}
        random_weights.raise_scores(heads.values(), run, wanted=15 * len(frames))
    else:
        head = network.class_labels_classifier
        random_weights.sharpen(head.layers[-1] if name == "yolos" else head, run, background=-1)
    return network, processor


def found(folder: Path, video: Path, processor: BaseImageProcessor) -> list[list[Box]]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}
    frames = []
    for frame in frames_of(video):
        picture = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        prepared = {
            key: value for key, value in processor(picture, return_tensors="np").items() if key in inputs
        }
        outputs = [value.name for value in session.get_outputs()]
        answer = dict(zip(outputs, map(torch.from_numpy, session.run(outputs, prepared)), strict=True))
        shapes = ModelOutput(logits=answer["logits"], pred_boxes=answer["pred_boxes"])
        boxes = processor.post_process_object_detection(shapes, 0.05, target_sizes=[frame.shape[:2]])[0]
        rows = zip(boxes["boxes"], boxes["scores"], boxes["labels"], strict=True)
        frames.append(
            [
                {"label": LABELS[int(class_id)], "score": float(score), "box": box.tolist()}
                for box, score, class_id in rows
            ]
        )
    return frames


def make(exports: Exports) -> None:
    for name in ("rt-detr", "yolos", "detr"):
        file = f"optimum-{name}"
        if exports.has(file):
            continue
        with exports.attempt(file):
            network, processor = build(name)
            source, made = exports.scratch / f"{file}-source", exports.scratch / file
            network.save_pretrained(source)
            processor.save_pretrained(source)
            main_export(str(source), made, task="object-detection", do_validation=False)
            command = f"optimum-cli export onnx --task object-detection --model {name}"
            exports.put(file, made, command=command, pipeline=PIPELINE)
            reader = AutoImageProcessor.from_pretrained(source, use_fast=False)
            exports.expect(file, functools.partial(found, processor=reader), ("tall.mp4",))
