"""What a model file declares about itself, or its administrator in ``framebox.toml`` beside it.

Every line of ``framebox.toml`` is optional where the file's own metadata say the same, or where it is
recognised (see ``app/detection/recognition/``):

    labels = ["person", "car"]    # in the order of the network's classes
    input = [640, 640]            # width, height
    batch = 1                     # the only batch size that the network takes
    layout = "yolo"               # see Layout
    outputs = {boxes = "dets"}    # names; also scores, classes, count. "0" is the first of those without
    boxes = "centre-size"         # centre-size, corner-size, corners, corners-y-first, rotated
    coordinates = "pixels"        # pixels, fractions
    scores = "probabilities"      # probabilities, logits
    extra_columns = 0             # that follow the layout's own: of masks, key points, an angle
    first_class = 0               # the number that the network gives to the first label
    strides = [8, 16, 32]         # of the grids, if boxes are given in their cells
    resize = "letterbox"          # letterbox, letterbox-centre, stretch, as-is, short-side
    white = 1.0                   # the value of a white pixel; 255 for a network that takes 0 to 255
    mean = [0.485, 0.456, 0.406]  # subtracted after that
    std = [0.229, 0.224, 0.225]   # divided by after that
    channels = "rgb"              # rgb, bgr
    min_score = 0.25              # for requests that name none
    max_overlap = 0.45            # of two boxes of one class that both stay; 1: all stay
    across_classes = false        # whether boxes of different classes drop each other too
    max_boxes = 300               # per frame
    precision = "float32"         # in which it computes: float32, float16, bfloat16
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.detection.network_input import Channels, NetworkInput, PixelRules
from app.detection.network_output import (
    DEFAULT_MAX_BOXES,
    FLOOR_SCORE,
    BoxFormat,
    Coordinates,
    Layout,
    Reading,
    Role,
    Scores,
)
from app.detection.precision import Precision
from app.detection.resize import AsIs, Fitting, FromSource, InputSize, ResizePolicy, ShortSide
from app.errors import ModelFault

MAX_BOXES = 1000  # a frame: the most that a declaration may ask for
MAX_LABELS = 100_000

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
    """What the numbers that go into and come out of a network mean. None: as usual for the layout."""

    labels: tuple[str, ...] = Field(min_length=1, max_length=MAX_LABELS)
    input: tuple[Side, Side]  # width, height
    batch: int | None = Field(default=None, ge=1, le=1024)
    layout: Layout
    outputs: dict[Role, str] = Field(default_factory=dict)
    boxes: BoxFormat | None = None
    coordinates: Coordinates | None = None
    scores: Scores | None = None
    extra_columns: int = Field(default=0, ge=0)
    first_class: int = Field(default=0, ge=0)
    strides: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()
    resize: ResizePolicy = ResizePolicy.LETTERBOX
    white: float = Field(default=1.0, gt=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    channels: Channels = Channels.RGB
    min_score: float = Field(default=0.25, ge=FLOOR_SCORE, le=1)
    max_overlap: float | None = Field(default=None, gt=0, le=1)
    across_classes: bool = False
    max_boxes: int = Field(default=DEFAULT_MAX_BOXES, ge=1, le=MAX_BOXES)
    precision: Precision | None = None  # None: that of FRAMEBOX_PRECISION
    # What recognition reports.
    left_out: tuple[str, ...] = ()  # what the output holds beside boxes, and is not served
    assumed: tuple[str, ...] = ()  # what the file does not say, and was taken from what is usual

    @property
    def reading(self) -> Reading:
        return Reading(
            self.layout,
            len(self.labels),
            max_overlap=self.max_overlap,
            across_classes=self.across_classes,
            max_boxes=self.max_boxes,
            box_format=self.boxes,
            coordinates=self.coordinates,
            scores=self.scores,
            outputs=self.outputs,
            extra_columns=self.extra_columns,
            first_class=self.first_class,
            strides=self.strides,
        )

    @property
    def pixels(self) -> PixelRules:
        return PixelRules(self.white, self.mean, self.std, self.channels)

    @property
    def fitting(self) -> Fitting:
        width, height = self.input
        if self.resize is ResizePolicy.AS_IS:
            return AsIs(min(width, height), max(width, height))
        if self.resize is ResizePolicy.SHORT_SIDE:
            return ShortSide(min(width, height), max(width, height))
        if self.resize is ResizePolicy.STRETCH_SHARP:
            return FromSource(lambda *_: (width, height), antialias=False)
        return InputSize(width, height, self.resize)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file's metadata say of a network, as Ultralytics' exporters and YOLOv5's write them."""

    labels: tuple[str, ...] | None = None
    input: tuple[int, int] | None = None  # width, height
    author: str = ""
    is_of_yolov5: bool = False  # by its author's exporter, or YOLOv9's: they write a stride, but no task
    task: str = "detect"
    head: str = ""  # the class of the network's last layer
    key_point_columns: int = 0


def read_metadata(name: str, metadata: Mapping[str, object]) -> Metadata:
    """Return what the metadata of model `name` say; what is of another kind than expected counts as left out.

    Keys: ``names``; ``imgsz`` (height, width), or ``shape`` (n, 3, height, width); ``author``, ``stride``,
    ``task``, ``head`` and ``kpt_shape``. Values are JSON or Python literals, or text of either. Raises
    ModelFault for labels that are wrong.
    """
    labels = None
    names = _literal(metadata.get("names"))
    if isinstance(names, Mapping):  # from 0, 1, 2 …
        labels = numbered_labels(names)
        if labels is None:
            raise ModelFault(f"Model {name!r} has labels whose numbers are not from 0 to {MAX_LABELS - 1}.")
    elif isinstance(names, list | tuple):
        labels = tuple(str(label) for label in names)
    elif names is not None:
        raise ModelFault(f"Model {name!r} has metadata 'names' that are not a list of labels.")
    size = _literal(metadata.get("imgsz", metadata.get("shape")))
    sides = _integers([size, size] if isinstance(size, int) else size)
    key_points = _integers(_literal(metadata.get("kpt_shape")))
    return Metadata(
        labels or None,
        (sides[-1], sides[-2]) if len(sides) in (2, 4) and min(sides[-2:]) > 0 else None,
        author=str(_literal(metadata.get("author", ""))),
        is_of_yolov5="stride" in metadata and not {"author", "task"} & metadata.keys(),
        task=str(_literal(metadata.get("task", "detect"))),
        head=str(_literal(metadata.get("head", ""))),
        key_point_columns=key_points[0] * key_points[1] if len(key_points) == 2 else 0,
    )


def numbered_labels(names: Mapping[Any, object]) -> tuple[str, ...] | None:
    """Return the labels of a mapping from numbers, as integers or text; a number without a label is its own.

    None if they are not numbers from 0, or too large.
    """
    numbered = {str(key): str(label) for key, label in names.items()}
    if not all(key.isdecimal() and len(key) <= len(str(MAX_LABELS)) for key in numbered):
        return None
    count = max((int(key) + 1 for key in numbered), default=0)
    if count > MAX_LABELS:
        return None
    return tuple(numbered.get(str(number), str(number)) for number in range(count))


def check_input(name: str, declaration: Declaration, takes: NetworkInput) -> None:
    """Raise ModelFault if the network's own file contradicts the declaration."""
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


def _integers(value: object) -> tuple[int, ...]:
    """Return the integers of a list, or () if it holds anything else."""
    if isinstance(value, list | tuple) and all(isinstance(number, int) for number in value):
        return tuple(value)
    return ()


def _literal(value: object) -> object:
    """Parse `value` if it is the text of a literal: ONNX keeps all metadata as text."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value
