"""From a network's raw output to boxes: layouts, selection and suppression, batched on the device."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

# The lowest score that is kept: callers cannot ask for less.
FLOOR_SCORE = 0.05
MAX_CANDIDATES = 1000  # a frame, best first, before suppression
DEFAULT_MAX_BOXES = 300  # a frame, after it
DEFAULT_MAX_OVERLAP = 0.45
LONGEST_DESCRIPTION = 300


class Layout(StrEnum):
    """How a network's output is laid out; C classes, A anchors, k boxes."""

    YOLO = "yolo"  # (n, 4 + C, A): box, class scores. YOLOv8 and later
    YOLO_OBJECTNESS = "yolo-objectness"  # (n, A, 5 + C): box, objectness, class scores. YOLOv5, YOLOX
    BOX_SCORES = "box-scores"  # (n, k, 4 + C): box, class scores; already suppressed
    END_TO_END = "end-to-end"  # (n, k, 6): box, score, class; already suppressed
    FRAME_ROWS = "frame-rows"  # (k, 7): number of the frame, box, class, score. YOLOv7 with suppression
    SEPARATE = "separate"  # boxes (n, k, 4), scores (n, k), classes (n, k), and perhaps their counts (n,)
    DETR = "detr"  # logits (n, k, C + 1) with "no object" as the last class, and boxes (n, k, 4)
    DETR_SIGMOID = "detr-sigmoid"  # logits (n, k, C), and boxes (n, k, 4)
    TORCHVISION = "torchvision"  # a dictionary for each frame: boxes (k, 4), labels (k,), scores (k,)

    def describe(self, class_count: int, extra_columns: int = 0) -> str:
        return {
            Layout.YOLO: f"(n, {4 + class_count + extra_columns}, anchors)",
            Layout.YOLO_OBJECTNESS: f"(n, anchors, {5 + class_count + extra_columns})",
            Layout.BOX_SCORES: f"(n, boxes, {4 + class_count + extra_columns})",
            Layout.END_TO_END: f"(n, boxes, {6 + extra_columns})",
            Layout.FRAME_ROWS: "(boxes, 7)",
            Layout.SEPARATE: "boxes (n, boxes, 4), scores (n, boxes) and classes (n, boxes)",
            Layout.DETR: f"logits (n, boxes, {class_count + 1}) and boxes (n, boxes, 4)",
            Layout.DETR_SIGMOID: f"logits (n, boxes, {class_count}) and boxes (n, boxes, 4)",
            Layout.TORCHVISION: "for each frame boxes (boxes, 4), labels (boxes,) and scores (boxes,)",
        }[self]

    @property
    def is_suppressed(self) -> bool:
        """Whether the network itself drops boxes that repeat a better one."""
        return self not in (Layout.YOLO, Layout.YOLO_OBJECTNESS)

    @property
    def is_dense(self) -> bool:
        """Whether the output has a row for each place of the picture, always in the same order."""
        return self in (Layout.YOLO, Layout.YOLO_OBJECTNESS)


class BoxFormat(StrEnum):
    """What the four numbers of a box are."""

    CENTRE_SIZE = "centre-size"  # centre x, centre y, width, height
    CORNER_SIZE = "corner-size"  # left, top, width, height
    CORNERS = "corners"  # left, top, right, bottom
    CORNERS_Y_FIRST = "corners-y-first"  # top, left, bottom, right
    ROTATED = "rotated"  # centre x, centre y, width, height; the last column is an angle in radians


class Coordinates(StrEnum):
    """The unit of a box."""

    PIXELS = "pixels"  # of the network's input
    FRACTIONS = "fractions"  # of its width and height


class Scores(StrEnum):
    """What a score is as the network gives it."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"  # sigmoid makes probabilities of them; softmax in the layout `detr`


class Role(StrEnum):
    """What one of several outputs holds."""

    BOXES = "boxes"
    SCORES = "scores"
    CLASSES = "classes"
    COUNT = "count"  # of the boxes that are not padding


# The names that exporters give to outputs.
OUTPUT_NAMES: Mapping[Role, Sequence[str]] = MappingProxyType(
    {
        Role.BOXES: ("pred_boxes", "boxes", "dets", "det_boxes", "detection_boxes"),
        Role.SCORES: ("logits", "pred_logits", "scores", "det_scores", "detection_scores", "pred_scores"),
        Role.CLASSES: ("labels", "det_classes", "detection_classes", "classes", "pred_classes"),
        Role.COUNT: ("num_dets", "num_detections", "num_predictions"),
    }
)


def usual_output(names: Collection[str], role: Role) -> str | None:
    """Return which of `names` exporters give to the output of a role; "pred_boxes" may have a prefix."""
    for usual in OUTPUT_NAMES[role]:
        for name in names:
            if name == usual or ("_" in usual and name.endswith(f"_{usual}")):
                return name
    return None


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a network's output."""

    layout: Layout
    class_count: int
    max_overlap: float | None = None  # None: as usual for the layout; 1: no box is dropped
    max_boxes: int = DEFAULT_MAX_BOXES  # a frame
    across_classes: bool = False  # whether boxes of different classes drop each other
    box_format: BoxFormat | None = None  # None: as usual for the layout
    coordinates: Coordinates | None = None  # None: as usual for the layout
    scores: Scores | None = None  # None: as usual for the layout
    outputs: Mapping[Role, str] = field(default_factory=dict)  # names; a nameless output's is its place
    extra_columns: int = 0  # that follow those of the layout, and are not read but for an angle
    first_class: int = 0  # the number that the network gives to the first label
    strides: tuple[int, ...] = ()  # of the grids in whose cells boxes are given; (): in the picture

    @property
    def has_logits(self) -> bool:
        if self.scores is not None:
            return self.scores is Scores.LOGITS
        return self.layout in (Layout.DETR, Layout.DETR_SIGMOID)

    @property
    def usual_overlap(self) -> float:
        if self.max_overlap is not None:
            return self.max_overlap
        return 1.0 if self.layout.is_suppressed else DEFAULT_MAX_OVERLAP

    @property
    def usual_format(self) -> BoxFormat:
        if self.box_format is not None:
            return self.box_format
        has_size = (Layout.YOLO, Layout.YOLO_OBJECTNESS, Layout.BOX_SCORES, Layout.DETR, Layout.DETR_SIGMOID)
        return BoxFormat.CENTRE_SIZE if self.layout in has_size else BoxFormat.CORNERS

    @property
    def usual_coordinates(self) -> Coordinates:
        if self.coordinates is not None:
            return self.coordinates
        is_query = self.layout in (Layout.BOX_SCORES, Layout.DETR, Layout.DETR_SIGMOID)
        return Coordinates.FRACTIONS if is_query else Coordinates.PIXELS

    def boxes_to_xyxy(self, boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Turn boxes into left, top, right, bottom in pixels of the input of (width, height): (…, 4).

        `boxes`: (…, 4 or more). Rotated ones become the upright rectangles around them.
        """
        first, second = boxes[..., :2], boxes[..., 2:4]
        match self.usual_format:
            case BoxFormat.CENTRE_SIZE:
                reach = second / 2
                corners = torch.cat([first - reach, first + reach], dim=-1)
            case BoxFormat.CORNER_SIZE:
                corners = torch.cat([first, first + second], dim=-1)
            case BoxFormat.CORNERS:
                corners = boxes[..., :4]
            case BoxFormat.CORNERS_Y_FIRST:
                corners = boxes[..., [1, 0, 3, 2]]
            case BoxFormat.ROTATED:
                sine, cosine = boxes[..., -1:].sin().abs(), boxes[..., -1:].cos().abs()
                reach = (second * cosine + second.flip(-1) * sine) / 2
                corners = torch.cat([first - reach, first + reach], dim=-1)
        if self.usual_coordinates is Coordinates.PIXELS:
            return corners
        return corners * corners.new_tensor(input_size * 2)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The k boxes of a batch, on the CPU: frame by frame, best first in each."""

    frame_ids: Numbers  # (k,), ascending
    boxes_xyxy: Floats  # (k, 4) pixels of the input
    scores: Floats  # (k,)
    class_ids: Numbers  # (k,)

    @property
    def is_inverted(self) -> npt.NDArray[np.bool_]:
        """Which boxes have their right or bottom edge before their left or top edge, (k,) bool."""
        left, top, right, bottom = self.boxes_xyxy.T
        inverted: npt.NDArray[np.bool_] = (left > right) | (top > bottom)
        return inverted


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A network's output, under the same names for every layout.

    Boxes, and class ids where each class has a score, are looked up only for the boxes that are kept.
    """

    boxes: Tensor  # (n, m, 4 or more): as the network gives them, a view of its output
    scores: Tensor  # (n, k) probabilities
    class_ids: Tensor  # (n, k) int64, from 0; or (n, k, C): their scores, the best of which counts
    box_ids: Tensor | None = None  # (n, k) int64: which of the m boxes; None: k is m, and each has its own

    def of_first(self, frame_count: int) -> Columns:
        """Return what it holds for the first frames."""
        if frame_count == len(self.scores):
            return self
        box_ids = None if self.box_ids is None else self.box_ids[:frame_count]
        return Columns(
            self.boxes[:frame_count], self.scores[:frame_count], self.class_ids[:frame_count], box_ids
        )


def read_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    """Return what `output` holds for `frame_count` frames, or None if it does not have the layout."""
    match reading.layout:
        case Layout.TORCHVISION:
            return _dictionary_columns(output, reading, frame_count)
        case Layout.SEPARATE:
            return _separate_columns(output, reading, frame_count)
        case Layout.DETR | Layout.DETR_SIGMOID:
            return _query_columns(output, reading, frame_count)
    is_named = Role.BOXES in reading.outputs
    dense = find_output(output, reading, Role.BOXES) if is_named else first_tensor(output)
    if dense is None:
        return None
    if reading.layout is Layout.FRAME_ROWS:
        return _row_columns(dense, reading, frame_count) if dense.shape[1:] == (7,) else None
    if dense.ndim != 3 or dense.shape[0] != frame_count:
        return None
    count, extra = reading.class_count, reading.extra_columns
    match reading.layout:
        case Layout.YOLO if dense.shape[1] == 4 + count + extra:
            class_ids = dense[:, 4 : 4 + count].transpose(1, 2)
            scores = _best_of_classes(dense[:, 4 : 4 + count])
            boxes = dense.transpose(1, 2)
        case Layout.YOLO_OBJECTNESS if dense.shape[2] == 5 + count + extra:
            class_ids = dense[..., 5 : 5 + count]
            scores = class_ids.amax(dim=2)
            objectness = dense[..., 4]
            if reading.has_logits:
                scores, objectness = scores.float().sigmoid(), objectness.float().sigmoid()
            scores = scores * objectness
            boxes = dense
        case Layout.BOX_SCORES if dense.shape[2] == 4 + count + extra:
            class_ids = dense[..., 4 : 4 + count]
            scores = class_ids.amax(dim=2)
            boxes = dense
        case Layout.END_TO_END if dense.shape[2] == 6 + extra:
            scores, class_ids = dense[..., 4], dense[..., 5].long() - reading.first_class
            boxes = dense
        case _:
            return None
    scores = scores.float()
    if reading.has_logits and reading.layout is not Layout.YOLO_OBJECTNESS:
        scores = scores.sigmoid()
    return Columns(boxes, scores, class_ids)


def _best_of_classes(scores: Tensor) -> Tensor:
    """Return the best of each place's class scores: (n, C, A) to (n, A)."""
    if scores.device.type == "cpu" and scores.dtype is torch.float32:
        return torch.from_numpy(scores.numpy().max(axis=1))  # in two thirds of torch's time
    return scores.amax(dim=1)


@functools.lru_cache(maxsize=16)
def grid_cells(input_size: tuple[int, int], strides: tuple[int, ...], device: torch.device) -> Tensor:
    """Return x, y and the stride in pixels of every cell, (A, 3): row by row, grid by grid."""
    width, height = input_size
    grids = []
    for stride in strides:
        rows, columns = torch.arange(height // stride), torch.arange(width // stride)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        grids.append(torch.stack([x, y, torch.full_like(x, stride)], dim=-1).reshape(-1, 3))
    return torch.cat(grids).float().to(device)


def _row_columns(rows: Tensor, reading: Reading, frame_count: int) -> Columns:
    frames = [rows[rows[:, 0] == number] for number in range(frame_count)]
    padded = pad_sequence(frames, batch_first=True).float()
    return Columns(padded[..., 1:5], padded[..., 6], padded[..., 5].long() - reading.first_class)


def _separate_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    boxes = find_output(output, reading, Role.BOXES)
    classes = find_output(output, reading, Role.CLASSES)
    if boxes is None or classes is None or boxes.ndim != 3 or boxes.shape[0] != frame_count:
        return None
    if boxes.shape[2] == 5:
        scores: Tensor | None = boxes[..., 4]
    else:
        scores = find_output(output, reading, Role.SCORES)
    if scores is None or boxes.shape[2] not in (4, 5) or not scores.shape == classes.shape == boxes.shape[:2]:
        return None
    scores = scores.float()
    if reading.has_logits:
        scores = scores.sigmoid()
    count = find_output(output, reading, Role.COUNT)
    if count is not None:
        places = torch.arange(boxes.shape[1], device=boxes.device)
        scores = scores * (places < count.reshape(-1, 1))
    return Columns(boxes[..., :4], scores, classes.long() - reading.first_class)


def _query_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    logits = find_output(output, reading, Role.SCORES)
    boxes = find_output(output, reading, Role.BOXES)
    is_softmax = reading.layout is Layout.DETR
    if logits is None or boxes is None or logits.ndim != 3:
        return None
    query_count = logits.shape[1]
    if boxes.shape != (frame_count, query_count, 4):
        return None
    if logits.shape != (frame_count, query_count, reading.class_count + is_softmax):
        return None
    scores = logits.float()
    if is_softmax:
        scores = scores.softmax(dim=2) if reading.has_logits else scores
        scores, class_ids = scores[..., :-1].max(dim=2)
        return Columns(boxes, scores, class_ids)
    # Every class of every query is a box; the best are kept.
    kept = min(reading.max_boxes, query_count * reading.class_count)
    scores, places = scores.flatten(1).topk(kept, dim=1)
    scores = scores.sigmoid() if reading.has_logits else scores
    return Columns(boxes, scores, places % reading.class_count, places // reading.class_count)


def _dictionary_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    """Read each frame's dictionary of boxes, labels and scores, as torchvision's detectors give them."""
    frames = frame_dictionaries(output, reading)
    if frames is None or len(frames) != frame_count:
        return None
    return Columns(
        boxes=pad_sequence([frame["boxes"] for frame in frames], batch_first=True),
        scores=pad_sequence([frame["scores"].float() for frame in frames], batch_first=True),
        class_ids=pad_sequence([frame["labels"].long() for frame in frames], batch_first=True)
        - reading.first_class,
    )


def frame_dictionaries(output: object, reading: Reading) -> list[Mapping[str, Tensor]] | None:
    """Return the dictionaries of boxes, labels and scores in `output`, or None if it has none.

    Scripted networks put their losses first; exported ones may give the three tensors of a single frame.
    """
    roles = {"boxes": Role.BOXES, "labels": Role.CLASSES, "scores": Role.SCORES}
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):
        output = output[1]
    is_tuple = isinstance(output, tuple) and len(output) >= 3
    if isinstance(output, Mapping) or (is_tuple and reading.outputs):
        output = [{name: find_output(output, reading, role) for name, role in roles.items()}]
    elif is_tuple and all(isinstance(value, Tensor) for value in output):  # type: ignore[attr-defined]
        output = [dict(zip(roles, output, strict=False))]  # type: ignore[call-overload]
    if not isinstance(output, list | tuple) or not output:
        return None
    frames: list[Mapping[str, Tensor]] = list(output)
    for frame in frames:
        if not (isinstance(frame, Mapping) and all(isinstance(frame.get(name), Tensor) for name in roles)):
            return None
        boxes, labels, scores = (frame[name] for name in roles)
        if boxes.shape != (*boxes.shape[:1], 4) or not boxes.shape[:1] == labels.shape == scores.shape:
            return None
    return frames


# ---- the best boxes


def select(columns: Columns, reading: Reading, input_size: tuple[int, int]) -> Candidates:
    """Return the boxes that reach FLOOR_SCORE and do not repeat a better one, at most `reading.max_boxes`.

    `input_size` is the (width, height) of the network's input. Boxes of equal score keep their order.

    Of the boxes and classes, only those that reach the score leave the device. They are few, and numpy takes
    a microsecond for each step where torch takes five.
    """
    scores = columns.scores.cpu().numpy()
    frame_count = len(scores)
    reaching = np.flatnonzero(scores >= FLOOR_SCORE)
    frames, places = np.divmod(reaching, scores.shape[1])
    scores = scores[frames, places]
    order = np.lexsort((-scores, frames))
    best = order[_ranks(frames, frame_count) < MAX_CANDIDATES]
    frames, places, scores = frames[best], places[best], scores[best]
    class_ids = _at(columns.class_ids, frames, places)
    if class_ids.ndim == 2:
        class_ids = class_ids.argmax(axis=1)
    rows = places if columns.box_ids is None else _at(columns.box_ids, frames, places)
    has_angle = reading.usual_format is BoxFormat.ROTATED
    boxes = torch.from_numpy(_at(columns.boxes if has_angle else columns.boxes[..., :4], frames, rows))
    if reading.strides:
        cells = grid_cells(input_size, reading.strides, boxes.device)[torch.from_numpy(rows)]  # (k, 3)
        boxes = torch.cat([boxes[:, :2] + cells[:, :2], boxes[:, 2:4].exp()], dim=-1) * cells[:, 2:]
    boxes_xyxy: Floats = reading.boxes_to_xyxy(boxes, input_size).numpy()
    if reading.usual_overlap < 1:
        rivals = np.zeros_like(class_ids) if reading.across_classes else class_ids
        suppressed, compared = (suppress_rotated, boxes.numpy()) if has_angle else (suppress, boxes_xyxy)
        stays = [
            suppressed(compared[start:end], rivals[start:end], reading.usual_overlap)
            for start, end in pairwise(_starts(frames, frame_count))
        ]
        kept = np.flatnonzero(np.concatenate(stays))
    else:
        kept = np.arange(len(frames))
    kept = kept[_ranks(frames[kept], frame_count) < reading.max_boxes]
    return Candidates(frames[kept], boxes_xyxy[kept], scores[kept], class_ids[kept])


def _at(values: Tensor, frames: Numbers, places: Numbers) -> npt.NDArray[Any]:
    """Return `values`, (n, m, …), at these places, (k, …): float32 or int64, in host memory."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.int64):
        found: npt.NDArray[Any] = values.numpy()[frames, places]
        return found
    picked = values[torch.from_numpy(frames).to(values.device), torch.from_numpy(places).to(values.device)]
    return (picked.float() if picked.is_floating_point() else picked).cpu().numpy()


def _starts(frames: Numbers, frame_count: int) -> Numbers:
    """Return where each frame begins among `frames`, which ascend, and where the last one ends."""
    return np.searchsorted(frames, np.arange(frame_count + 1))


def _ranks(frames: Numbers, frame_count: int) -> Numbers:
    """Return each box's place in its frame, from 0. `frames`: ascending."""
    return np.arange(len(frames)) - _starts(frames, frame_count)[frames]


def suppress(boxes_xyxy: Floats, class_ids: Numbers, max_overlap: float) -> npt.NDArray[np.bool_]:
    """Return which of a frame's boxes stay, (k,), after class-wise non-maximum suppression.

    `boxes_xyxy`: (k, 4), best first; `class_ids`: (k,). Only boxes of one class that touch are compared. If
    all do, this takes about 60 bytes for each of the k² / 2 pairs.
    """
    stays = np.ones(len(boxes_xyxy), np.bool_)
    if len(boxes_xyxy) < 2:
        return stays
    # From left to right, a box meets those that begin before it ends.
    order = np.argsort(boxes_xyxy[:, 0], kind="stable")
    boxes, classes = boxes_xyxy[order], class_ids[order]
    left, top, right, bottom = boxes.T.copy()
    places = np.arange(len(order))
    met_counts = np.maximum(np.searchsorted(left, right) - places - 1, 0)
    ones = np.repeat(places, met_counts)
    others = np.arange(len(ones)) + (places + 1 - np.cumsum(met_counts) + met_counts)[ones]
    can_repeat = np.maximum(top[ones], top[others]) < np.minimum(bottom[ones], bottom[others])
    can_repeat &= classes[ones] == classes[others]
    met = np.flatnonzero(can_repeat)
    ones, others = ones[met], others[met]
    over = np.flatnonzero(_overlap_of(boxes[ones], boxes[others]) > max_overlap)
    ones, others = order[ones[over]], order[others[over]]
    better, worse = np.minimum(ones, others), np.maximum(ones, others)
    # A box goes if one that it repeats stays. Each round settles those that repeat only settled ones.
    while True:
        settled = np.ones_like(stays)
        settled[worse[stays[better]]] = False
        if (settled == stays).all():
            return stays
        stays = settled


def suppress_rotated(boxes: Floats, class_ids: Numbers, max_overlap: float) -> npt.NDArray[np.bool_]:
    """Return which of a frame's rotated boxes stay, (k,): those that no better one of their class repeats.

    `boxes`: (k, 5 or more), best first: centre x, centre y, width, height, and the angle last, in radians.
    Their overlap is one minus the Hellinger distance of two normal distributions, each with the centre of a
    box, and along its sides the variance of a twelfth of their squares (arXiv 2106.06072). As in Ultralytics'
    own suppression, a box that is dropped drops others too.
    """
    stays = np.ones(len(boxes), np.bool_)
    ones, others = np.triu_indices(len(boxes), 1)
    same = class_ids[ones] == class_ids[others]
    ones, others = ones[same], others[same]
    x, y, width, height = boxes[:, :4].T.astype(np.float64)
    sine, cosine = np.sin(boxes[:, -1], dtype=np.float64), np.cos(boxes[:, -1], dtype=np.float64)
    across, along = width**2 / 12, height**2 / 12
    xx, yy = across * cosine**2 + along * sine**2, across * sine**2 + along * cosine**2
    xy = (across - along) * sine * cosine
    tiny = np.finfo(np.float64).tiny
    spread = np.maximum(xx * yy - xy**2, tiny)
    sum_xx, sum_yy, sum_xy = xx[ones] + xx[others], yy[ones] + yy[others], xy[ones] + xy[others]
    sum_spread = np.maximum(sum_xx * sum_yy - sum_xy**2, tiny)
    dx, dy = x[ones] - x[others], y[ones] - y[others]
    apart = (sum_yy * dx**2 + sum_xx * dy**2 - 2 * sum_xy * dx * dy) / (4 * sum_spread)
    unlike = np.log(sum_spread / (4 * np.sqrt(spread[ones] * spread[others]))) / 2
    overlap = 1 - np.sqrt(np.maximum(1 - np.exp(-(apart + unlike)), 0))
    stays[others[overlap > max_overlap]] = False
    return stays


def overlaps(boxes_xyxy: Floats) -> Floats:
    """Return the intersection over union of every two boxes: (k, 4) to (k, k)."""
    return _overlap_of(boxes_xyxy[:, None], boxes_xyxy)


def _overlap_of(ones: Floats, others: Floats) -> Floats:
    """Return the intersection over union of boxes, (…, 4) each, pair by pair."""
    near, far = np.maximum(ones[..., :2], others[..., :2]), np.minimum(ones[..., 2:], others[..., 2:])
    intersection, area, other_area = (
        np.maximum(size[..., 0], 0) * np.maximum(size[..., 1], 0)
        for size in (far - near, ones[..., 2:] - ones[..., :2], others[..., 2:] - others[..., :2])
    )
    union = area + other_area - intersection
    shares: Floats = intersection / np.maximum(union, np.finfo(union.dtype).tiny)
    return shares


# ---- the tensors of an output


def first_tensor(output: object) -> Tensor | None:
    """Return the first tensor in `output`: the one that matters where a network gives several."""
    return next((tensor for _, tensor in _tensors_of(output)), None)


def find_output(output: object, reading: Reading, role: Role) -> Tensor | None:
    """Return the tensor of `output` that has a role: by its declared name, a usual one, or its place."""
    found = dict(named_tensors(output))
    if role in reading.outputs:
        return found.get(reading.outputs[role])
    if reading.outputs:
        return None
    name = usual_output(found, role)
    if name is not None:
        return found[name]
    places = (
        (Role.SCORES, Role.BOXES) if reading.layout in (Layout.DETR, Layout.DETR_SIGMOID) else tuple(Role)
    )
    return found.get(str(places.index(role))) if role in places else None


def named_tensors(output: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in `output` with its name, or its place if it has none; depth first."""
    for place, (name, tensor) in enumerate(_tensors_of(output)):
        yield name or str(place), tensor


def _tensors_of(output: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in `output` with its name, which may be empty; depth first."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            for inner, tensor in _tensors_of(value):
                yield inner or str(name), tensor
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors_of(value)


def describe_output(output: object) -> str:
    """Describe `output` for a message: the shape of a tensor, the names and shapes of several."""
    if isinstance(output, Tensor):
        text = str(tuple(output.shape))
    elif isinstance(output, Mapping):
        text = f"{{{', '.join(f'{name}: {describe_output(value)}' for name, value in output.items())}}}"
    elif isinstance(output, list | tuple):
        text = f"[{', '.join(map(describe_output, output))}]"
    else:
        text = type(output).__name__
    return text if len(text) <= LONGEST_DESCRIPTION else f"{text[:LONGEST_DESCRIPTION]}…"
