"""Folders of Hugging Face: ``config.json``, ``preprocessor_config.json`` and ``*.safetensors``.

transformers builds the network and reads its weights; pictures are prepared and boxes read here, in batches
on the device, as the folder's image processor would. Nothing is fetched, no pickle is opened, and no code of
the folder is run: only architectures of transformers itself are served.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from app.detection.model_files import CONFIG_FILE, ModelContent, json_object, reason
from app.detection.model_formats.declaration import MAX_BOXES, Declared
from app.detection.network import LoadedNetwork, Network
from app.detection.network_input import NetworkInput, processor_pixels
from app.detection.network_output import DEFAULT_MAX_BOXES, FLOOR_SCORE, Layout, Reading
from app.detection.precision import Precision
from app.detection.resize import FromSource
from app.errors import ModelFault

PROCESSOR_FILE = "preprocessor_config.json"
NESTED_PROCESSOR_FILE = "processor_config.json"  # which some folders have instead, as ``image_processor``
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"

TENSOR_TYPES: Mapping[str, torch.dtype] = MappingProxyType(  # by the names that .safetensors files have
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
BILINEAR = 2
KERNELS: Mapping[object, str] = MappingProxyType({BILINEAR: "bilinear", 3: "bicubic"})  # as Pillow counts


@dataclass(frozen=True, slots=True)
class Processor:
    """What an image processor of transformers does, beyond what its settings say."""

    layout: Layout
    max_boxes: int | None = None  # a frame, by default; None: the number of the network's queries
    multiple: int = 1  # each side of a picture that keeps its aspect ratio is a multiple of this
    antialias: bool = True
    normalizes: bool = True  # unless its settings say otherwise
    size: Mapping[str, int] = field(default_factory=lambda: {"shortest_edge": 800, "longest_edge": 1333})


PROCESSORS: Mapping[str, Processor] = MappingProxyType(
    {
        "DetrImageProcessor": Processor(Layout.DETR),
        "YolosImageProcessor": Processor(Layout.DETR, multiple=16),
        "ConditionalDetrImageProcessor": Processor(Layout.DETR_SIGMOID, max_boxes=100),
        "DeformableDetrImageProcessor": Processor(Layout.DETR_SIGMOID, max_boxes=100),
        "RTDetrImageProcessor": Processor(
            Layout.DETR_SIGMOID, normalizes=False, size={"height": 640, "width": 640}
        ),
        "RfDetrImageProcessor": Processor(Layout.DETR_SIGMOID, antialias=False),
    }
)


class FolderDeclaration(Declared):
    """What ``framebox.toml`` may say about such a folder."""

    labels: tuple[str, ...] | None = Field(default=None, min_length=1)
    min_score: float = Field(default=0.5, ge=FLOOR_SCORE, le=1)  # as transformers' own pipeline has it
    max_boxes: int | None = Field(default=None, ge=1, le=MAX_BOXES)
    precision: Precision | None = None


def load_huggingface(
    content: ModelContent,
    declared: Mapping[str, object],
    device: str,
    converted: Network | None = None,
) -> LoadedNetwork:
    """Return the network of a folder, or its `converted` form, with its rules.

    Raises ModelFault for a folder that is not an object detector, or needs what is not served, and, naming
    the requirement file, if transformers is not installed.
    """
    declaration = FolderDeclaration.of(content.name, declared)
    config = _json(content, CONFIG_FILE)
    if "auto_map" in config:
        raise ModelFault(f"Model {content.name!r} brings code of its own (auto_map), which is not run.")
    settings = _processor_settings(content)
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "none")
    plain = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    module = None if converted is not None else _module(content, config, takes=plain)
    processor = PROCESSORS[plain]
    fitting = _fitting(content.name, settings, processor)
    labels, max_boxes = declaration.labels or (), declaration.max_boxes or 0
    if module is not None:
        id2label = module.config.id2label
        labels = labels or tuple(
            id2label.get(number, str(number)) for number in range(module.config.num_labels)
        )
        queries = getattr(module.config, "num_queries", None)
        query_count = min(queries, MAX_BOXES) if isinstance(queries, int) else DEFAULT_MAX_BOXES
        max_boxes = max_boxes or processor.max_boxes or query_count
        module.to(device)
    known = FolderDeclaration(
        labels=labels,
        min_score=declaration.min_score,
        max_boxes=max_boxes,
        precision=declaration.precision,
    )
    network = converted or _running(module, _pad_size(content.name, settings))
    return LoadedNetwork(
        network,
        fitting,
        processor_pixels(settings, normalizes=processor.normalizes),
        Reading(processor.layout, len(labels), max_boxes=max_boxes),
        labels,
        declaration.min_score,
        declaration.precision,
        network.takes.batch,
        known.model_dump(mode="json"),
    )


def _running(module: Any, pad_size: tuple[int, int] | None) -> Network:
    """Return a network of transformers that pads its pictures to `pad_size`, (height, width), if any."""

    def run(pictures: Tensor) -> dict[str, Tensor]:
        mask = None
        if pad_size is not None:
            height, width = pictures.shape[2:]
            below, right = pad_size[0] - height, pad_size[1] - width
            if min(below, right) < 0:
                raise ValueError(f"a picture of {width} x {height} is larger than its pad_size")
            mask = functional.pad(
                pictures.new_ones(len(pictures), height, width).long(), (0, right, 0, below)
            )
            pictures = functional.pad(pictures, (0, right, 0, below))
        output = module(pixel_values=pictures, pixel_mask=mask)
        # Fractions of the picture without the padding, as transformers takes them.
        return {"logits": output.logits, "pred_boxes": output.pred_boxes}

    return Network(NetworkInput(), run, module=module)


def _json(content: ModelContent, file: str) -> dict[str, Any]:
    if file not in content.digests:
        raise ModelFault(f"The folder of model {content.name!r} has no {file}; save it with save_pretrained.")
    return json_object(f"The {file} of model {content.name!r}", content.read(file))


def _processor_settings(content: ModelContent) -> dict[str, Any]:
    """Return the image processor's settings, from the file that transformers would read."""
    if NESTED_PROCESSOR_FILE in content.digests:
        nested = _json(content, NESTED_PROCESSOR_FILE).get("image_processor")
        if isinstance(nested, dict):
            return nested
    return _json(content, PROCESSOR_FILE)


def _fitting(name: str, settings: Mapping[str, Any], processor: Processor) -> FromSource:
    kernel = KERNELS.get(settings.get("resample", BILINEAR))
    if kernel is None:
        raise ModelFault(
            f"The image processor of model {name!r} scales with resample = {settings['resample']!r}; served "
            f"are {' and '.join(f'{number} ({name})' for number, name in KERNELS.items())}."
        )
    if not settings.get("do_resize", True):
        return FromSource(lambda *size: size, kernel, processor.antialias)
    size = settings.get("size") or processor.size
    if isinstance(size, int):  # as it was written before 2023
        size = {"shortest_edge": size, "longest_edge": settings.get("max_size", 1333)}
    match size:
        case {"shortest_edge": int(short), "longest_edge": int(longest)}:
            size_of = partial(by_edges, short=short, longest=longest, multiple=processor.multiple)
        case {"max_height": int(max_height), "max_width": int(max_width)}:
            size_of = partial(by_limits, max_width=max_width, max_height=max_height)
        case {"height": int(height), "width": int(width)}:
            return FromSource(lambda *_: (width, height), kernel, processor.antialias)
        case _:
            raise ModelFault(
                f"The image processor of model {name!r} asks for another size than height and width, "
                "shortest_edge and longest_edge, or max_height and max_width."
            )
    return FromSource(size_of, kernel, processor.antialias)


def by_edges(width: int, height: int, *, short: int, longest: int, multiple: int = 1) -> tuple[int, int]:
    """Return the (width, height) with the shorter side `short`, or less if the longer exceeds `longest`.

    Rounded as transformers does it (get_size_with_aspect_ratio), then down to a multiple of `multiple`.
    """
    smaller, larger = min(width, height), max(width, height)
    wanted: float = short
    if larger / smaller * short > longest:
        wanted = longest * smaller / larger
    if round(wanted) != smaller:
        scaled = round(wanted), int(wanted * larger / smaller)
        width, height = scaled if width < height else scaled[::-1]
    return max(multiple, width // multiple * multiple), max(multiple, height // multiple * multiple)


def by_limits(width: int, height: int, *, max_width: int, max_height: int) -> tuple[int, int]:
    """Return the largest (width, height) of that aspect ratio within both limits, enlarged if need be."""
    scale = min(max_height / height, max_width / width)
    return max(1, int(width * scale)), max(1, int(height * scale))


def _pad_size(name: str, settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) to which pictures are padded, right and below, with zeros; None: not."""
    size = settings.get("pad_size")
    if not size or not settings.get("do_pad", settings.get("pad_and_return_pixel_mask", True)):
        return None  # frames of one video have one size, so they need no padding to lie in one batch
    match size:
        case {"height": int(height), "width": int(width)}:
            return height, width
    raise ModelFault(f"The pad_size of model {name!r} has no height and width.")


def _module(content: ModelContent, config: Mapping[str, Any], *, takes: str) -> Any:
    """Return the network with its weights. `takes`: the class of its image processor."""
    try:
        import huggingface_hub  # noqa: PLC0415 - optional, and large
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise ModelFault(
            f"Model {content.name!r} is a folder of Hugging Face; to serve it, pip install -r "
            "requirements-huggingface.txt."
        ) from error
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # whatever a config names, nothing is fetched
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    mappings = transformers.models.auto.modeling_auto
    kinds = mappings.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    kind = config.get("model_type")
    if kind in mappings.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES:
        raise ModelFault(
            f"Model {content.name!r} is of type {kind!r}, which finds what a text names; served are networks "
            "that have labels of their own."
        )
    if kind not in kinds:
        raise ModelFault(
            f"Model {content.name!r} is of type {kind!r}, for which transformers has no object detector."
        )
    if takes not in PROCESSORS:
        raise ModelFault(
            f"Model {content.name!r} names {takes} as its image processor; served are "
            f"{', '.join(PROCESSORS)}."
        )
    if not config.get("id2label") and config.get("label2id"):
        id2label = {number: label for label, number in config["label2id"].items()}
        config = {**config, "id2label": id2label}
    with _reported(content.name):
        complete = transformers.AutoConfig.for_model(**config)
    if getattr(getattr(complete, "backbone_config", None), "model_type", None) == "timm_backbone":
        raise ModelFault(
            f"Model {content.name!r} has a backbone of timm, which is not served; take the variant whose "
            "backbone is of transformers (of facebook/detr-resnet-50 the revision no_timm)."
        )
    with _reported(content.name):
        weights = {}
        for file in _weight_files(content):
            weights.update(tensors_of(content.name, content.read(file)))
        module, loading = getattr(transformers, kinds[str(kind)]).from_pretrained(
            None, config=complete, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if missing:
        raise ModelFault(
            f"The weights of model {content.name!r} are not those of its {CONFIG_FILE}: {len(missing)} are "
            f"missing or of another shape, such as {missing[0]}."
        )
    return module.eval()


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Report errors of the block, in which transformers loads model `name`, as ModelFault."""
    try:
        yield
    except ModelFault:
        raise
    except Exception as error:  # transformers raises whatever it meets
        raise ModelFault(f"transformers cannot load model {name!r}: {reason(error)}.") from error


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


def tensors_of(name: str, content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file of model `name`, by name. They share the memory of `content`.

    The format: the header's length in 8 bytes, little-endian; a JSON header with each tensor's type, shape,
    and first and last byte; the numbers. Its own library copies each tensor, and panics without memory.
    Raises ModelFault, ValueError or KeyError for other content.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    header = json_object(f"The header of the weights of model {name!r}", content[8:start])
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        dtype, shape, (first, end) = TENSOR_TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        count = math.prod(shape)
        if end - first != count * dtype.itemsize:
            raise ValueError(f"tensor {tensor} has another size than its shape")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # no one writes weights
            flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start + first)
        is_aligned = (start + first) % dtype.itemsize == 0
        tensors[tensor] = (flat if is_aligned else flat.clone()).reshape(shape)
    return tensors
