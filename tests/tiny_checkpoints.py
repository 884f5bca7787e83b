"""Checkpoints of transformers, with shrunk configs and random weights, saved as people save theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

LABELS = {0: "person", 1: "car", 2: "dog"}
# mypy misses the configurations' options that transformers takes as further keywords: hence call-arg below.
COMMON: Mapping[str, Any] = {"id2label": LABELS, "label2id": {label: n for n, label in LABELS.items()}}

RESNET: Mapping[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
HYBRID: Mapping[str, Any] = {  # what RT-DETR's family shares
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 32],
    "decoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "d_model": 16,
    "num_queries": 20,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
}
TRANSFORMER: Mapping[str, Any] = {  # what DETR's family shares
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 20,
}


def _hybrid_backbone() -> Any:
    return transformers.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])  # type: ignore[call-arg]


def _resnet_backbone(stages: list[str]) -> Any:
    return transformers.ResNetConfig(**RESNET, out_features=stages)  # type: ignore[call-arg]


def rt_detr() -> Any:
    config = transformers.RTDetrConfig(backbone_config=_hybrid_backbone(), **HYBRID, **COMMON)
    return transformers.RTDetrForObjectDetection(config)


def rt_detr_v2() -> Any:
    config = transformers.RTDetrV2Config(backbone_config=_hybrid_backbone(), **HYBRID, **COMMON)
    return transformers.RTDetrV2ForObjectDetection(config)


def d_fine() -> Any:
    config = transformers.DFineConfig(backbone_config=_hybrid_backbone(), **HYBRID, **COMMON)
    return transformers.DFineForObjectDetection(config)


def detr() -> Any:
    config = transformers.DetrConfig(  # type: ignore[call-arg]
        use_timm_backbone=False, backbone_config=_resnet_backbone(["stage4"]), **TRANSFORMER, **COMMON
    )
    return transformers.DetrForObjectDetection(config)


def conditional_detr() -> Any:
    config = transformers.ConditionalDetrConfig(  # type: ignore[call-arg]
        use_timm_backbone=False, backbone_config=_resnet_backbone(["stage4"]), **TRANSFORMER, **COMMON
    )
    return transformers.ConditionalDetrForObjectDetection(config)


def yolos() -> Any:
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[96, 128],
        num_detection_tokens=20,
        initializer_range=0.1,  # or its layers would amplify a difference of one grey level
        **COMMON,
    )
    return transformers.YolosForObjectDetection(config)


def rf_detr() -> Any:
    backbone = transformers.RfDetrDinov2Config(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        num_windows=2,
        out_features=["stage1", "stage2"],
    )
    config = transformers.RfDetrConfig(
        backbone_config=backbone,
        d_model=16,
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        decoder_n_points=2,
        num_queries=20,
        group_detr=2,
        c2f_num_blocks=1,
        **COMMON,
    )
    return transformers.RfDetrForObjectDetection(config)


CHECKPOINTS: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "rt_detr": (rt_detr, lambda: transformers.RTDetrImageProcessorPil(size={"height": 160, "width": 192})),
    "rt_detr_v2": (
        rt_detr_v2,
        lambda: transformers.RTDetrImageProcessorPil(size={"height": 160, "width": 160}),
    ),
    "d_fine": (d_fine, lambda: transformers.RTDetrImageProcessorPil(size={"height": 160, "width": 160})),
    "detr": (
        detr,
        lambda: transformers.DetrImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 200}),
    ),
    "conditional_detr": (
        conditional_detr,
        lambda: transformers.ConditionalDetrImageProcessorPil(
            size={"shortest_edge": 128, "longest_edge": 200}
        ),
    ),
    "yolos": (
        yolos,
        lambda: transformers.YolosImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 200}),
    ),
}


def save_checkpoint(name: str, folder: Path) -> Path:
    """Write checkpoint `name` into `folder`, with scores all over [0, 1]."""
    make_network, make_processor = CHECKPOINTS[name]
    save_network(make_network, folder)
    make_processor().save_pretrained(folder)
    return folder


def save_network(make_network: Callable[[], Any], folder: Path) -> None:
    torch.manual_seed(1)
    network = make_network().eval()
    with torch.no_grad():
        for parameter, weights in network.named_parameters():
            if "class" in parameter or "score" in parameter:
                weights.normal_(std=0.7)
    network.save_pretrained(folder)
