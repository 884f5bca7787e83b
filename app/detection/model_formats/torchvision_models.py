"""Detection models of torchvision: a file ``*.pth`` with weights, and a declaration with the architecture.

    architecture = "fasterrcnn_resnet50_fpn_v2"    # a builder of torchvision.models.detection
    labels = ["__background__", "person", "car"]   # the first is torchvision's own

The weights are read as tensors only (``weights_only``): such a pickle runs no code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from app.detection.model_files import ModelContent, reason
from app.detection.model_formats.declaration import MAX_BOXES, Declared
from app.detection.network import LoadedNetwork, Network
from app.detection.network_input import NetworkInput, PixelRules
from app.detection.network_output import DEFAULT_MAX_BOXES, FLOOR_SCORE, Layout, Reading
from app.detection.precision import Precision
from app.detection.resize import Fitting, InputSize, ResizePolicy, ShortSide
from app.errors import ModelFault


class WeightsDeclaration(Declared):
    """What ``framebox.toml`` has to say about a file of weights."""

    architecture: str
    labels: tuple[str, ...] = Field(min_length=2)
    min_score: float = Field(default=0.5, ge=FLOOR_SCORE, le=1)
    max_boxes: int = Field(default=DEFAULT_MAX_BOXES, ge=1, le=MAX_BOXES)
    precision: Precision | None = None


def load_torchvision(
    content: ModelContent, file: str, declared: Mapping[str, object], device: str
) -> LoadedNetwork:
    """Return the network with the weights of `file`, and its rules.

    Raises ModelFault for any other model, and if torchvision is not installed or does not fit torch.
    """
    declaration = WeightsDeclaration.of(content.name, declared)
    weights = read_weights(content.name, content.read(file))
    try:
        from torchvision import models  # noqa: PLC0415 - optional, and large
    except ImportError as error:
        raise ModelFault(
            f"Model {content.name!r} is of torchvision; to serve it, pip install torchvision==0.28.0."
        ) from error
    except RuntimeError as error:  # its operators are compiled for another build of torch
        raise ModelFault(
            f"Model {content.name!r} is of torchvision, and the torchvision that is installed is not built "
            f"for torch {torch.__version__}. Install both from the same index."
        ) from error
    known = models.list_models(module=models.detection)
    if declaration.architecture not in known:
        raise ModelFault(
            f"Model {content.name!r} declares the architecture {declaration.architecture!r}; torchvision has "
            f"{', '.join(known)}."
        )
    try:
        module = models.get_model(
            declaration.architecture,
            weights=None,
            weights_backbone=None,
            num_classes=len(declaration.labels),
        )
        module.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelFault(
            f"The weights of model {content.name!r} are not those of a {declaration.architecture} with "
            f"{len(declaration.labels)} labels, the background counted: {reason(error)}."
        ) from error
    module.eval()
    # Pictures are scaled as the model itself would, so that the decoder can do it before.
    transform = module.transform
    fitting: Fitting = ShortSide(transform.min_size[-1], transform.max_size)
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        fitting = InputSize(width, height, ResizePolicy.STRETCH)
    module.to(device)
    return LoadedNetwork(
        Network(NetworkInput(), lambda pictures: module(list(pictures))),  # which it normalises itself
        fitting,
        PixelRules(),
        Reading(Layout.TORCHVISION, len(declaration.labels), max_boxes=declaration.max_boxes),
        declaration.labels,
        declaration.min_score,
        declaration.precision,
    )


def read_weights(name: str, content: bytes) -> dict[str, Tensor]:
    """Read a state dict, by itself or as ``model`` or ``state_dict`` in a checkpoint. Runs no code.

    Raises ModelFault for a pickle of anything else.
    """
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ModelFault(
            f"Model {name!r} is not a file of weights only ({type(error).__name__}). Save them with "
            "torch.save(network.state_dict(), file)."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ModelFault(
            f"Model {name!r} holds no state dict. Save it with torch.save(network.state_dict(), file)."
        )
    return weights
