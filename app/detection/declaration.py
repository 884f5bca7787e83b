"""What a model file says of itself, or its administrator in ``framebox.toml`` beside it.

``framebox.toml``, every line optional where the file's own metadata says it:

    labels = ["person", "car"]    # in the order of the network's classes
    input = [640, 640]            # width, height
    layout = "yolo"               # yolo, yolo-objectness, end-to-end
    resize = "letterbox"          # letterbox, letterbox-centre, stretch
    min_score = 0.25              # where a request names none
    max_overlap = 0.45            # of boxes of one class that both stay
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.detection.layouts import FLOOR_SCORE, Layout
from app.detection.resize import InputSize, ResizePolicy
from app.errors import ModelFault


class Declaration(BaseModel):
    """What the numbers that go into and come out of a network mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(min_length=1, max_length=100_000)
    input: tuple[int, int]  # width, height
    layout: Layout = Layout.YOLO
    resize: ResizePolicy = ResizePolicy.LETTERBOX
    min_score: float = Field(default=0.25, ge=FLOOR_SCORE, le=1)
    max_overlap: float = Field(default=0.45, gt=0, le=1)

    @property
    def input_size(self) -> InputSize:
        return InputSize(*self.input, policy=self.resize)


def read_declaration(
    name: str, metadata: Mapping[str, object], overrides: Mapping[str, object]
) -> Declaration:
    """Return what holds of model `name`: `overrides` (framebox.toml) first, then the file's own metadata.

    `metadata` is what Ultralytics' exporter writes: ``names``, ``imgsz`` (height, width), ``task``; values
    are JSON or Python literals, or text of either. Raises ModelFault saying what to write for what is
    missing or wrong.
    """
    known = {**_from_metadata(name, metadata), **overrides}
    try:
        return Declaration.model_validate(known)
    except ValidationError as error:
        faults = "; ".join(_explain(fault) for fault in error.errors())
        raise ModelFault(
            f"Model {name!r} does not say what its output means: {faults}. Write it in framebox.toml."
        ) from error


def _explain(fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{field} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{field} is none of {', '.join(Declaration.model_fields)}"
    return f"{field}: {fault['msg']}"


def _from_metadata(name: str, metadata: Mapping[str, object]) -> dict[str, object]:
    values = {key: _literal(metadata[key]) for key in ("names", "imgsz", "task") if key in metadata}
    task = values.get("task", "detect")
    if task != "detect":
        raise ModelFault(f"Model {name!r} is for the task {task!r}; only 'detect' is served.")
    known: dict[str, object] = {}
    if "names" in values:
        known["labels"] = _labels(name, values["names"])
    size = values.get("imgsz")
    if isinstance(size, int):
        known["input"] = (size, size)
    elif isinstance(size, list | tuple) and len(size) == 2:
        known["input"] = (size[1], size[0])
    return known


def _literal(value: object) -> object:
    """Return what `value` stands for if it is text: ONNX keeps all metadata as text."""
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


def _labels(name: str, names: object) -> tuple[str, ...]:
    """Return the labels of ``names``, a list, or a mapping from 0, 1, 2 …"""
    if isinstance(names, Mapping):
        numbered = {str(key): str(label) for key, label in names.items()}
        if set(numbered) != {str(number) for number in range(len(numbered))}:
            raise ModelFault(f"Model {name!r} has labels whose numbers are not 0 to {len(numbered) - 1}.")
        return tuple(numbered[str(number)] for number in range(len(numbered)))
    if isinstance(names, list | tuple):
        return tuple(str(label) for label in names)
    raise ModelFault(f"Model {name!r} has metadata 'names' that are no list of labels.")
