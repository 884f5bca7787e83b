"""The ways to read a network's output that names, types, shapes and metadata leave open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from app.detection.model_formats.declaration import (
    MAX_BOXES,
    Metadata,
)
from app.detection.network_input import (
    FurtherInput,
    NetworkInput,
)
from app.detection.network_output import (
    BoxFormat,
    Coordinates,
    Layout,
    Reading,
    Role,
    Scores,
    frame_dictionaries,
    grid_cells,
    named_tensors,
    usual_output,
)

NUMBERED_CLASSES = 2000  # of a network that gives class numbers, if no labels are known
GRIDS = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))  # strides of the grids of YOLO networks
ANCHORS_A_CELL = 3  # of YOLOv5 and YOLOv7
LEFT_OUT = MappingProxyType(  # what outputs hold beside boxes, by a part of their names
    {"mask": "masks", "keypoint": "key points", "kpt": "key points", "angle": "angles"}
)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to read an output, as far as names and shapes tell."""

    layout: Layout
    class_count: int
    outputs: Mapping[Role, str] = field(default_factory=dict)
    extra_columns: int = 0
    keys: Mapping[str, object] = field(default_factory=dict)  # of Declaration, that names or metadata settle
    left_out: tuple[str, ...] = ()

    def reading(self) -> Reading:
        """Return how to read the numbers of this form as they are."""
        return Reading(
            self.layout,
            self.class_count,
            max_boxes=MAX_BOXES,
            scores=Scores.PROBABILITIES,
            outputs=self.outputs,
            extra_columns=self.extra_columns,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a network gave for trial pictures."""

    output: object
    frame_count: int
    input_size: tuple[int, int]


def is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool((tensor == tensor.round()).all())


def grid_with(rows: int, input_size: tuple[int, int], anchors: int = 1) -> tuple[int, ...]:
    """Return the strides of the usual grids that have `rows` boxes, `anchors` of them in a cell; or ()."""
    for strides in GRIDS:
        if len(grid_cells(input_size, strides, torch.device("cpu"))) * anchors == rows:
            return strides
    return ()


def candidate_forms(
    seen: Seen,
    *,
    class_count: int | None,
    metadata: Metadata,
    takes: NetworkInput,
    named: Mapping[Role, str],
    declared_extra: int | None,
) -> list[Form]:
    """Return the forms that an output could have by its names and shapes.

    `class_count`: if labels are known. `named`, `declared_extra`: what is declared as `outputs` and
    `extra_columns`.
    """
    tensors = dict(named_tensors(seen.output))
    forms = _forms_of_several(seen.output, tensors, class_count, takes, named) or _forms_of_one(
        tensors, class_count, metadata, seen, named.get(Role.BOXES), declared_extra
    )
    beside = [what for name in tensors for word, what in LEFT_OUT.items() if word in name]
    return [
        replace(
            form,
            left_out=tuple(dict.fromkeys([*form.left_out, *beside])),
            outputs={**form.outputs, **named},
        )
        for form in forms
    ]


def _forms_of_several(
    output: object,
    tensors: Mapping[str, Tensor],
    class_count: int | None,
    takes: NetworkInput,
    named: Mapping[Role, str],
) -> list[Form]:
    """Return the forms of an output with boxes, scores and classes apart, or of dictionaries."""
    if frame_dictionaries(output, Reading(Layout.TORCHVISION, 1)) is not None:
        return [Form(Layout.TORCHVISION, class_count or NUMBERED_CLASSES)]

    def find(tensors: Mapping[str, Tensor], role: Role, *fits: Callable[[Tensor], bool]) -> str | None:
        """Return which tensor has a role: as declared, by a usual name, or else the first that `fits`."""
        if named.get(role) in tensors:
            return named[role]
        found = (name for fit in fits for name, tensor in tensors.items() if fit(tensor))
        return usual_output(tensors, role) or next(found, None)

    boxes = find(tensors, Role.BOXES, lambda tensor: tensor.ndim in (2, 3) and tensor.shape[-1] in (4, 5))
    if boxes is None:
        return []
    rows = tensors[boxes].shape[:-1]
    flat = {name: tensor for name, tensor in tensors.items() if tensor.shape == rows}
    classes = find(flat, Role.CLASSES, lambda tensor: not tensor.is_floating_point(), is_whole)
    rest = {name: tensor for name, tensor in flat.items() if name != classes}
    scores = find(rest, Role.SCORES, lambda tensor: tensor.is_floating_point())
    outputs = {Role.BOXES: boxes}
    if classes is not None and (scores is not None or tensors[boxes].shape[-1] == 5):
        outputs[Role.CLASSES] = classes
        if tensors[boxes].shape[-1] == 4 and scores is not None:
            outputs[Role.SCORES] = scores
        if len(rows) == 1:
            return [Form(Layout.TORCHVISION, class_count or NUMBERED_CLASSES, outputs)]
        counts = {name: tensor for name, tensor in tensors.items() if tensor.numel() == rows[0]}
        count = find(counts, Role.COUNT)
        if count is not None:
            outputs[Role.COUNT] = count
        return [
            Form(Layout.SEPARATE, class_count or NUMBERED_CLASSES, outputs, keys=_keys_by_name(boxes, takes))
        ]
    matrices = {
        name: tensor
        for name, tensor in tensors.items()
        if name != boxes and tensor.ndim == 3 and tensor.shape[:-1] == rows and tensor.is_floating_point()
    }
    if len(rows) != 2 or tensors[boxes].shape[-1] != 4 or not matrices:
        return []
    matrix = find(matrices, Role.SCORES, lambda _: True)
    if matrix is None:
        return []
    outputs[Role.SCORES] = matrix
    columns = tensors[matrix].shape[-1]
    forms = [Form(Layout.DETR_SIGMOID, columns, outputs)]
    if columns > 1 and boxes != "dets":
        forms.append(Form(Layout.DETR, columns - 1, outputs))
    return [form for form in forms if class_count in (None, form.class_count)]


def _keys_by_name(boxes: str, takes: NetworkInput) -> dict[str, object]:
    """Return what the name of the boxes settles in the layout `separate`, or that the sizes are given."""
    if boxes == "detection_boxes":  # of TensorFlow's zoo, which counts from 1
        return {
            "boxes": BoxFormat.CORNERS_Y_FIRST,
            "coordinates": Coordinates.FRACTIONS,
            "first_class": 1,
        }
    if boxes in ("dets", "det_boxes"):
        return {"boxes": BoxFormat.CORNERS, "coordinates": Coordinates.PIXELS}
    if any(kind is FurtherInput.SIZES for kind, _ in takes.further):
        return {"boxes": BoxFormat.CORNERS, "coordinates": Coordinates.FRACTIONS}
    return {"boxes": BoxFormat.CORNERS} if boxes.endswith("pred_boxes") else {}  # of YOLO-NAS


def _forms_of_one(
    tensors: Mapping[str, Tensor],
    class_count: int | None,
    metadata: Metadata,
    seen: Seen,
    named: str | None,
    declared_extra: int | None,
) -> list[Form]:
    """Return the forms of an output of which one tensor holds everything: the named one, or the first."""
    name = named if named is not None and named in tensors else next(iter(tensors), "")
    dense = tensors.get(name, torch.empty(0))
    outputs = {Role.BOXES: name}
    if dense.ndim == 2 and dense.shape[1] == 7:
        rows = {"boxes": BoxFormat.CORNERS, "coordinates": Coordinates.PIXELS}
        return [Form(Layout.FRAME_ROWS, class_count or NUMBERED_CLASSES, outputs, keys=rows)]
    if dense.ndim != 3 or dense.shape[0] != seen.frame_count:
        return []
    _, first, second = dense.shape
    extra = 0
    left_out: tuple[str, ...] = ()
    keys: dict[str, object] = {}
    prototypes = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    if metadata.task == "obb":
        extra, left_out = 1, ("angles",)
        keys = {"boxes": BoxFormat.ROTATED}
    elif metadata.task == "pose":
        extra, left_out = metadata.key_point_columns, ("key points",)
    elif prototypes and (metadata.task == "segment" or (len(tensors) == 2 and named is None)):
        extra, left_out = prototypes[0].shape[1], ("masks",)
    if declared_extra is not None:
        extra = declared_extra
    forms = []

    def add(layout: Layout, count: int) -> None:
        if count > 0 and class_count in (None, count):
            forms.append(Form(layout, count, outputs, extra, keys, left_out))

    if second == 6 + extra:
        settled = keys
        if metadata.author == "Ultralytics" and metadata.head and "boxes" not in keys:
            is_query = "RTDETR" in metadata.head
            settled = {
                "boxes": BoxFormat.CENTRE_SIZE if is_query else BoxFormat.CORNERS,
                "coordinates": Coordinates.FRACTIONS if is_query else Coordinates.PIXELS,
            }
        count = class_count or NUMBERED_CLASSES
        forms.append(Form(Layout.END_TO_END, count, outputs, extra, settled, left_out))
    if class_count is not None or first < second:
        add(Layout.YOLO, first - 4 - extra)
    if class_count is not None or first > second:
        of_anchors = bool(grid_with(first, seen.input_size, ANCHORS_A_CELL))
        if class_count is not None or of_anchors or grid_with(first, seen.input_size):
            add(Layout.YOLO_OBJECTNESS, second - 5 - extra)
        if class_count is not None or not of_anchors:
            add(Layout.BOX_SCORES, second - 4 - extra)
    return forms
