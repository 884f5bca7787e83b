"""Checkpoints of transformers, with shrunk configs and random weights, saved as people save theirs."""

from __future__ import annotations

import json
import re
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


def deimv2() -> Any:
    backbone = transformers.HGNetV2Config(  # type: ignore[call-arg]
        embedding_size=8,
        stem_channels=[3, 8, 8],
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_indices=[2, 3, 4],
    )
    config = transformers.Deimv2Config(backbone_config=backbone, **HYBRID, **COMMON)
    return transformers.Deimv2ForObjectDetection(config)


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


def dab_detr() -> Any:
    options = {name: value for name, value in TRANSFORMER.items() if name != "d_model"}
    config = transformers.DabDetrConfig(  # type: ignore[call-arg]
        use_timm_backbone=False,
        backbone_config=_resnet_backbone(["stage4"]),
        hidden_size=16,
        **options,
        **COMMON,
    )
    return transformers.DabDetrForObjectDetection(config)


def deformable_detr() -> Any:
    config = transformers.DeformableDetrConfig(  # type: ignore[call-arg]
        use_timm_backbone=False,
        backbone_config=_resnet_backbone(["stage2", "stage3", "stage4"]),
        # Features are normalised in 32 groups; one decoder layer's heads could not be tied.
        **{**TRANSFORMER, "d_model": 32, "decoder_layers": 2},
        **COMMON,
    )
    return transformers.DeformableDetrForObjectDetection(config)


def table_transformer() -> Any:
    config = transformers.TableTransformerConfig(  # type: ignore[call-arg]
        use_timm_backbone=False, backbone_config=_resnet_backbone(["stage4"]), **TRANSFORMER, **COMMON
    )
    return transformers.TableTransformerForObjectDetection(config)


def lw_detr() -> Any:
    backbone = transformers.LwDetrViTConfig(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=128,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    config = transformers.LwDetrConfig(
        backbone_config=backbone,
        projector_scale_factors=[1.0],
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
    return transformers.LwDetrForObjectDetection(config)


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


SQUARE: Mapping[str, Any] = {"size": {"height": 160, "width": 160}}
EDGES: Mapping[str, Any] = {"size": {"shortest_edge": 128, "longest_edge": 200}}

# Every architecture of transformers' object detectors but those for documents, and its image processor. That
# of RF-DETR needs torchvision; its settings are the same as DETR's.
CHECKPOINTS: Mapping[str, tuple[Callable[[], Any], str, Mapping[str, Any]]] = {
    "conditional_detr": (conditional_detr, "ConditionalDetrImageProcessor", EDGES),
    "d_fine": (d_fine, "RTDetrImageProcessor", SQUARE),
    "dab-detr": (dab_detr, "ConditionalDetrImageProcessor", EDGES),
    "deformable_detr": (deformable_detr, "DeformableDetrImageProcessor", EDGES),
    "deimv2": (deimv2, "RTDetrImageProcessor", SQUARE),
    "detr": (detr, "DetrImageProcessor", EDGES),
    "lw_detr": (lw_detr, "DeformableDetrImageProcessor", {"size": {"height": 128, "width": 128}}),
    "rf_detr": (rf_detr, "RfDetrImageProcessor", {"size": {"height": 112, "width": 112}, "do_pad": False}),
    "rt_detr": (rt_detr, "RTDetrImageProcessor", {"size": {"height": 160, "width": 192}}),
    "rt_detr_v2": (rt_detr_v2, "RTDetrImageProcessor", SQUARE),
    "table-transformer": (table_transformer, "DetrImageProcessor", EDGES),
    "yolos": (yolos, "YolosImageProcessor", EDGES),
}

# Weights that begin so small that all queries of a network give one box.
SPREADING = re.compile(
    r"query_(position_embeddings|refpoint)|(decoder\.layers.*|encoder)\.[a-z_]*proj|bbox_predictor|detection_tokens"
)


def save_checkpoint(name: str, folder: Path) -> Path:
    """Write checkpoint `name` into `folder`, with scores all over [0, 1]."""
    make_network, processor, settings = CHECKPOINTS[name]
    save_network(make_network, folder)
    save_processor(processor, settings, folder)
    return folder


def save_processor(processor: str, settings: Mapping[str, Any], folder: Path) -> None:
    known = f"{processor.replace('RfDetr', 'Detr')}Pil"
    getattr(transformers, known)(**settings).save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_processor_type": processor}))


def save_network(make_network: Callable[[], Any], folder: Path) -> None:
    torch.manual_seed(1)
    network = make_network().eval()
    is_alike = type(network).__name__.startswith(("Conditional", "DabDetr", "Detr", "Table", "Yolos"))
    with torch.no_grad():
        for parameter, weights in network.named_parameters():
            if "class" in parameter or "score" in parameter:
                weights.normal_(std=0.7)
            elif is_alike and weights.ndim > 1 and SPREADING.search(parameter):
                weights.normal_(std=0.25)
    network.save_pretrained(folder)
