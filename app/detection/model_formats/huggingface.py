"""Folders of Hugging Face: ``config.json``, ``preprocessor_config.json`` and ``*.safetensors``.

transformers builds the network and reads its weights; pictures are prepared and boxes read here, in batches
on the device, as the folder's image processor would. Nothing is fetched, no pickle is opened, and no code of
the folder is run: only architectures of transformers itself are served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from app.detection.model_files import CONFIG_FILE, ModelContent, json_object, reason
from app.detection.model_formats.declaration import MAX_BOXES, Declared
from app.detection.network import LoadedNetwork, Network
from app.detection.network_input import NetworkInput, PixelRules
from app.detection.network_output import DEFAULT_MAX_BOXES, FLOOR_SCORE, Layout, Reading
from app.detection.precision import Precision
from app.detection.resize import Fitting, InputSize, ResizePolicy, ShortSide
from app.errors import ModelFault

PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Processor:
    """What an image processor of transformers does, beyond what its settings say."""

    layout: Layout
    max_boxes: int | None = None  # a frame, by default; None: the number of the network's queries
    multiple: int = 1  # each side of a scaled picture is a multiple of this


PROCESSORS: Mapping[str, Processor] = MappingProxyType(
    {
        "DetrImageProcessor": Processor(Layout.DETR),
        "YolosImageProcessor": Processor(Layout.DETR, multiple=16),
        "ConditionalDetrImageProcessor": Processor(Layout.DETR_SIGMOID, max_boxes=100),
        "DeformableDetrImageProcessor": Processor(Layout.DETR_SIGMOID, max_boxes=100),
        "RTDetrImageProcessor": Processor(Layout.DETR_SIGMOID),
        "RfDetrImageProcessor": Processor(Layout.DETR_SIGMOID),
    }
)


class FolderDeclaration(Declared):
    """What ``framebox.toml`` may say about such a folder."""

    labels: tuple[str, ...] | None = Field(default=None, min_length=1)
    min_score: float = Field(default=0.5, ge=FLOOR_SCORE, le=1)  # as transformers' own pipeline has it
    max_boxes: int | None = Field(default=None, ge=1, le=MAX_BOXES)
    precision: Precision | None = None


def load_huggingface(content: ModelContent, declared: Mapping[str, object], device: str) -> LoadedNetwork:
    """Return the network of a folder with its rules.

    Raises ModelFault for a folder that is not an object detector, or needs what is not served, and, naming
    the requirement file, if transformers is not installed.
    """
    declaration = FolderDeclaration.of(content.name, declared)
    config = _json(content, CONFIG_FILE)
    if "auto_map" in config:
        raise ModelFault(f"Model {content.name!r} brings code of its own (auto_map), which is not run.")
    backbone = config.get("backbone_config") or {}
    if backbone.get("model_type") == "timm_backbone" or (config.get("use_timm_backbone") and not backbone):
        raise ModelFault(
            f"Model {content.name!r} has a backbone of timm, which is not served; take the variant whose "
            "backbone is of transformers (of facebook/detr-resnet-50 the revision no_timm)."
        )
    settings = _json(content, PROCESSOR_FILE)
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "none")
    plain = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain not in PROCESSORS:
        raise ModelFault(
            f"Model {content.name!r} names {kind} as its image processor; served are {', '.join(PROCESSORS)}."
        )
    processor = PROCESSORS[plain]
    module = _module(content, config)
    id2label = module.config.id2label
    labels = declaration.labels or tuple(
        id2label.get(number, str(number)) for number in range(max(id2label) + 1)
    )
    queries = getattr(module.config, "num_queries", None)
    query_count = min(queries, MAX_BOXES) if isinstance(queries, int) else DEFAULT_MAX_BOXES
    max_boxes = declaration.max_boxes or processor.max_boxes or query_count
    white = 255.0
    if settings.get("do_rescale", True):
        white *= settings.get("rescale_factor", 1 / 255)
    mean = std = None
    if settings.get("do_normalize", True):
        mean = tuple(settings.get("image_mean", (0.485, 0.456, 0.406)))
        std = tuple(settings.get("image_std", (0.229, 0.224, 0.225)))
    module.to(device)

    def run(pictures: Tensor) -> dict[str, Tensor]:
        output = module(pixel_values=pictures)
        return {"logits": output.logits, "pred_boxes": output.pred_boxes}

    return LoadedNetwork(
        Network(NetworkInput(), run, module=module),
        _fitting(content.name, settings, processor),
        PixelRules(white, mean, std),
        Reading(processor.layout, len(labels), max_boxes=max_boxes),
        labels,
        declaration.min_score,
        declaration.precision,
    )


def _json(content: ModelContent, file: str) -> dict[str, Any]:
    if file not in content.digests:
        raise ModelFault(f"The folder of model {content.name!r} has no {file}; save it with save_pretrained.")
    return json_object(f"The {file} of model {content.name!r}", content.read(file))


def _fitting(name: str, settings: Mapping[str, Any], processor: Processor) -> Fitting:
    size = settings.get("size", {"shortest_edge": 800, "longest_edge": 1333})
    if isinstance(size, int):  # as it was written before 2023
        size = {"shortest_edge": size, "longest_edge": settings.get("max_size", 1333)}
    if not settings.get("do_resize", True) or settings.get("pad_size"):
        size = {}
    match size:
        case {"height": int(height), "width": int(width)}:
            return InputSize(width, height, ResizePolicy.STRETCH)
        case {"shortest_edge": int(short), "longest_edge": int(longest)}:
            return ShortSide(short, longest, processor.multiple)
    raise ModelFault(
        f"The {PROCESSOR_FILE} of model {name!r} asks for another size than height and width, or "
        "shortest_edge and longest_edge, without pad_size."
    )


def _module(content: ModelContent, config: Mapping[str, Any]) -> Any:
    try:
        import huggingface_hub  # noqa: PLC0415 - optional, and large
        import transformers  # noqa: PLC0415
        from safetensors.torch import load as load_weights  # noqa: PLC0415
    except ImportError as error:
        raise ModelFault(
            f"Model {content.name!r} is a folder of Hugging Face; to serve it, pip install -r "
            "requirements-huggingface.txt."
        ) from error
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # whatever a config names, nothing is fetched
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    if config.get("model_type") not in kinds:
        raise ModelFault(
            f"Model {content.name!r} is of type {config.get('model_type')!r}, for which transformers has "
            "no object detector."
        )
    weights = {}
    try:
        for file in _weight_files(content):
            weights.update(load_weights(content.read(file)))
        module, loading = getattr(transformers, kinds[config["model_type"]]).from_pretrained(
            None,
            config=transformers.AutoConfig.for_model(**config),
            state_dict=weights,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except ModelFault:
        raise
    except Exception as error:  # transformers and safetensors raise whatever they meet
        raise ModelFault(f"transformers cannot load model {content.name!r}: {reason(error)}.") from error
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if missing:
        raise ModelFault(
            f"The weights of model {content.name!r} are not those of its {CONFIG_FILE}: {len(missing)} are "
            f"missing or of another shape, such as {missing[0]}."
        )
    return module.eval()


def _weight_files(content: ModelContent) -> list[str]:
    if WEIGHTS_INDEX_FILE in content.digests:
        parts = _json(content, WEIGHTS_INDEX_FILE).get("weight_map", {}).values()
        files = sorted({str(part) for part in parts})
        absent = [file for file in files if file not in content.digests]
        if absent:
            raise ModelFault(f"The folder of model {content.name!r} lacks {absent[0]}.")
        return files
    files = content.named(".safetensors")
    if len(files) != 1:
        raise ModelFault(
            f"The folder of model {content.name!r} holds {len(files)} files .safetensors, where one is "
            "wanted. Pickles such as pytorch_model.bin are not opened: save it again with save_pretrained."
        )
    return files
