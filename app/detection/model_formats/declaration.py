"""What a model file declares about itself, or its administrator in ``framebox.toml`` beside it.

Every line of ``framebox.toml`` is optional where the file's own metadata, or the format, says the same:

    labels = ["person", "car"]    # in the order of the network's classes
    input = [640, 640]            # width, height
    batch = 1                     # the only batch size that the network takes
    layout = "yolo"               # yolo, yolo-objectness, end-to-end, detr, detr-sigmoid, torchvision
    boxes = "centre-size"         # centre-size, corner-size, corners
    coordinates = "pixels"        # pixels, fractions
    resize = "letterbox"          # letterbox, letterbox-centre, stretch
    white = 1.0                   # the value of a white pixel; 255 for a network that takes 0 to 255
    mean = [0.485, 0.456, 0.406]  # subtracted after that
    std = [0.229, 0.224, 0.225]   # divided by after that
    channels = "rgb"              # rgb, bgr
    min_score = 0.25              # for requests that name none
    max_overlap = 0.45            # of two boxes of one class that both stay
    max_boxes = 300               # per frame
    precision = "float32"         # in which it computes: float32, float16, bfloat16
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.detection.network_input import Channels, NetworkInput
from app.detection.network_output import (
    DEFAULT_MAX_BOXES,
    FLOOR_SCORE,
    BoxFormat,
    Coordinates,
    Layout,
)
from app.detection.precision import Precision
from app.detection.resize import ResizePolicy
from app.errors import ModelFault

MAX_BOXES = 1000  # a frame: the most that a declaration may ask for

Side = Annotated[int, Field(ge=1, le=16384)]
Positive = Annotated[float, Field(gt=0)]


class Declared(BaseModel):
    """What has to be known of a model of some format, and may be declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, name: str, known: Mapping[str, object]) -> Self:
        """Check what is known of model `name`. Raises ModelFault saying what to write."""
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            faults = []
            for fault in error.errors():
                field = ".".join(str(part) for part in fault["loc"])
                if fault["type"] == "missing":
                    faults.append(f"{field} is missing")
                elif fault["type"] == "extra_forbidden":
                    faults.append(f"{field} is not one of {', '.join(cls.model_fields)}")
                else:
                    faults.append(f"{field}: {fault['msg']}")
            raise ModelFault(
                f"Model {name!r} does not say what its output means: {'; '.join(faults)}. Write it in "
                "framebox.toml."
            ) from error


class Declaration(Declared):
    """What the numbers that go into and come out of a network mean."""

    labels: tuple[str, ...] = Field(min_length=1, max_length=100_000)
    input: tuple[Side, Side]  # width, height
    batch: int | None = Field(default=None, ge=1, le=1024)
    layout: Layout = Layout.YOLO
    boxes: BoxFormat | None = None  # None: the layout's own
    coordinates: Coordinates | None = None
    resize: ResizePolicy = ResizePolicy.LETTERBOX
    white: float = Field(default=1.0, gt=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    channels: Channels = Channels.RGB
    min_score: float = Field(default=0.25, ge=FLOOR_SCORE, le=1)
    max_overlap: float = Field(default=0.45, gt=0, le=1)
    max_boxes: int = Field(default=DEFAULT_MAX_BOXES, ge=1, le=MAX_BOXES)
    precision: Precision | None = None  # None: that of FRAMEBOX_PRECISION


def read_declaration(
    name: str,
    metadata: Mapping[str, object],
    overrides: Mapping[str, object],
    takes: NetworkInput | None = None,
) -> Declaration:
    """Return the declaration of a model: `overrides` (framebox.toml) first, then the file's own metadata.

    `metadata` is what Ultralytics' exporter writes: ``names``, ``imgsz`` (height, width), ``task``; values
    are JSON or Python literals, or text of either. `takes` is what the file says about the network's input.
    Raises ModelFault saying what to write for what is missing or wrong.
    """
    takes = takes or NetworkInput()
    values = {key: _literal(metadata[key]) for key in ("names", "imgsz", "task") if key in metadata}
    task = values.get("task", "detect")
    if task != "detect":
        raise ModelFault(f"Model {name!r} is for the task {task!r}; only 'detect' is served.")
    known: dict[str, object] = {}
    if takes.width is not None and takes.height is not None:
        known["input"] = (takes.width, takes.height)
    if "names" in values:  # a list, or a mapping from 0, 1, 2 …
        names = values["names"]
        if isinstance(names, Mapping):
            numbered = {str(key): str(label) for key, label in names.items()}
            if set(numbered) != {str(number) for number in range(len(numbered))}:
                raise ModelFault(f"Model {name!r} has labels whose numbers are not 0 to {len(numbered) - 1}.")
            known["labels"] = tuple(numbered[str(number)] for number in range(len(numbered)))
        elif isinstance(names, list | tuple):
            known["labels"] = tuple(str(label) for label in names)
        else:
            raise ModelFault(f"Model {name!r} has metadata 'names' that are not a list of labels.")
    size = values.get("imgsz")
    if isinstance(size, int):
        known["input"] = (size, size)
    elif isinstance(size, list | tuple) and len(size) == 2:
        known["input"] = (size[1], size[0])
    declaration = Declaration.of(name, {**known, **overrides})
    # The network's own file may contradict it.
    width, height = declaration.input
    fixed = (takes.width or width, takes.height or height)
    if fixed != declaration.input:
        raise ModelFault(
            f"Model {name!r} takes pictures {fixed[0]} wide and {fixed[1]} high, but input = "
            f"[{width}, {height}] is declared. Write input = [{fixed[0]}, {fixed[1]}] in framebox.toml."
        )
    if takes.batch is not None and declaration.batch not in (None, takes.batch):
        raise ModelFault(
            f"Model {name!r} takes {takes.batch} pictures at a time, but batch = {declaration.batch} is "
            f"declared. Write batch = {takes.batch} in framebox.toml, or leave it out."
        )
    is_plain = declaration.white == 1 and declaration.mean is None and declaration.std is None
    if takes.dtype is torch.uint8 and not is_plain:
        raise ModelFault(
            f"Model {name!r} takes pictures as bytes, so it normalises them itself. Leave white, mean and "
            "std out of framebox.toml."
        )
    return declaration


def _literal(value: object) -> object:
    """Parse `value` if it is the text of a literal: ONNX keeps all metadata as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
