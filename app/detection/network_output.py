"""From a network's raw output to boxes: layouts, selection and suppression, batched on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# The lowest score that is kept: callers cannot ask for less.
FLOOR_SCORE = 0.05
MAX_CANDIDATES = 1000  # a frame, best first, before suppression
DEFAULT_MAX_BOXES = 300  # a frame, after it
LONGEST_DESCRIPTION = 300


class Layout(StrEnum):
    """How a network's output is laid out; C classes, A anchors, k boxes."""

    YOLO = "yolo"  # (n, 4 + C, A): box, class scores. YOLOv8 and later
    YOLO_OBJECTNESS = "yolo-objectness"  # (n, A, 5 + C): box, objectness, class scores. YOLOv5, YOLOX
    END_TO_END = "end-to-end"  # (n, k, 6): box, score, class; already suppressed
    DETR = "detr"  # logits (n, k, C + 1) with "no object" as the last class, and boxes (n, k, 4)
    DETR_SIGMOID = "detr-sigmoid"  # logits (n, k, C), and boxes (n, k, 4)
    TORCHVISION = "torchvision"  # a dictionary for each frame: boxes (k, 4), labels (k,), scores (k,)

    def describe(self, class_count: int) -> str:
        return {
            Layout.YOLO: f"(n, {4 + class_count}, anchors)",
            Layout.YOLO_OBJECTNESS: f"(n, anchors, {5 + class_count})",
            Layout.END_TO_END: "(n, boxes, 6)",
            Layout.DETR: f"logits (n, boxes, {class_count + 1}) and boxes (n, boxes, 4)",
            Layout.DETR_SIGMOID: f"logits (n, boxes, {class_count}) and boxes (n, boxes, 4)",
            Layout.TORCHVISION: "for each frame boxes (boxes, 4), labels (boxes,) and scores (boxes,)",
        }[self]

    @property
    def is_suppressed(self) -> bool:
        """Whether the network itself drops boxes that repeat a better one."""
        return self not in (Layout.YOLO, Layout.YOLO_OBJECTNESS)


class BoxFormat(StrEnum):
    """What the four numbers of a box are."""

    CENTRE_SIZE = "centre-size"  # centre x, centre y, width, height
    CORNER_SIZE = "corner-size"  # left, top, width, height
    CORNERS = "corners"  # left, top, right, bottom


class Coordinates(StrEnum):
    """The unit of a box."""

    PIXELS = "pixels"  # of the network's input
    FRACTIONS = "fractions"  # of its width and height


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a network's output."""

    layout: Layout
    class_count: int
    max_overlap: float = 0.45
    max_boxes: int = DEFAULT_MAX_BOXES  # a frame
    box_format: BoxFormat | None = None  # None: as usual for the layout
    coordinates: Coordinates | None = None  # None: as usual for the layout

    def boxes_to_xyxy(self, boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Turn boxes, (…, 4), into left, top, right, bottom in pixels of the input of (width, height)."""
        has_corners = self.layout in (Layout.END_TO_END, Layout.TORCHVISION)
        has_fractions = self.layout in (Layout.DETR, Layout.DETR_SIGMOID)
        first, second = boxes[..., :2], boxes[..., 2:]
        match self.box_format or (BoxFormat.CORNERS if has_corners else BoxFormat.CENTRE_SIZE):
            case BoxFormat.CENTRE_SIZE:
                boxes = torch.cat([first - second / 2, first + second / 2], dim=-1)
            case BoxFormat.CORNER_SIZE:
                boxes = torch.cat([first, first + second], dim=-1)
        unit = self.coordinates or (Coordinates.FRACTIONS if has_fractions else Coordinates.PIXELS)
        return boxes if unit is Coordinates.PIXELS else boxes * boxes.new_tensor(input_size * 2)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The boxes of a batch, best first in each frame, padded to the frame with the most."""

    boxes_xyxy: Tensor  # (n, k, 4) pixels of the input
    scores: Tensor  # (n, k)
    class_ids: Tensor  # (n, k) int64
    valid: Tensor  # (n, k) bool: not padding


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A network's output, under the same names for every layout."""

    boxes: Tensor  # (n, k, 4) as the network gives them
    scores: Tensor  # (n, k)
    class_ids: Tensor  # (n, k) int64


def fitting_layouts(output: object, class_count: int, frame_count: int) -> list[Layout]:
    """Return the layouts that `output` could have."""
    readings = [Reading(layout, class_count) for layout in Layout]
    return [reading.layout for reading in readings if read_columns(output, reading, frame_count) is not None]


def read_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    """Return what `output` holds for `frame_count` frames, or None if it does not have the layout."""
    match reading.layout:
        case Layout.TORCHVISION:
            return _dictionary_columns(output, frame_count)
        case Layout.DETR | Layout.DETR_SIGMOID:
            return _query_columns(output, reading, frame_count)
    dense = first_tensor(output)
    if dense is None or dense.ndim != 3 or dense.shape[0] != frame_count:
        return None
    dense = dense.float()
    match reading.layout:
        case Layout.YOLO if dense.shape[1] == 4 + reading.class_count:
            scores, class_ids = dense[:, 4:].max(dim=1)
            return Columns(dense[:, :4].transpose(1, 2), scores, class_ids)
        case Layout.YOLO_OBJECTNESS if dense.shape[2] == 5 + reading.class_count:
            scores, class_ids = dense[..., 5:].max(dim=2)
            return Columns(dense[..., :4], scores * dense[..., 4], class_ids)
        case Layout.END_TO_END if dense.shape[2] == 6:
            return Columns(dense[..., :4], dense[..., 4], dense[..., 5].long())
    return None


def _query_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    logits = _named_tensor(output, ("logits", "pred_logits"), 0)
    boxes = _named_tensor(output, ("pred_boxes", "boxes"), 1)
    is_softmax = reading.layout is Layout.DETR
    if logits is None or boxes is None or logits.ndim != 3:
        return None
    query_count = logits.shape[1]
    if boxes.shape != (frame_count, query_count, 4):
        return None
    if logits.shape != (frame_count, query_count, reading.class_count + is_softmax):
        return None
    if is_softmax:
        scores, class_ids = logits.float().softmax(dim=2)[..., :-1].max(dim=2)
        return Columns(boxes.float(), scores, class_ids)
    # Every class of every query is a box; the best are kept.
    kept = min(reading.max_boxes, query_count * reading.class_count)
    scores, places = logits.float().sigmoid().flatten(1).topk(kept, dim=1)
    queries = (places // reading.class_count)[..., None].expand(-1, -1, 4)
    return Columns(boxes.float().gather(1, queries), scores, places % reading.class_count)


def _dictionary_columns(output: object, frame_count: int) -> Columns | None:
    """Read each frame's dictionary of boxes, labels and scores, as torchvision's detectors give them.

    Scripted ones put their losses first; exported ones may give the three tensors of a single frame.
    """
    names = ("boxes", "labels", "scores")
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):
        output = output[1]
    if isinstance(output, Mapping) or (isinstance(output, tuple) and len(output) == 3):
        output = [{name: _named_tensor(output, [name], place) for place, name in enumerate(names)}]
    if not isinstance(output, list | tuple) or not output or len(output) != frame_count:
        return None
    frames: list[Mapping[str, Tensor]] = list(output)
    for frame in frames:
        if not (isinstance(frame, Mapping) and all(isinstance(frame.get(name), Tensor) for name in names)):
            return None
        boxes, labels, scores = (frame[name] for name in names)
        if boxes.shape != (*boxes.shape[:1], 4) or not boxes.shape[:1] == labels.shape == scores.shape:
            return None
    return Columns(
        boxes=pad_sequence([frame["boxes"].float() for frame in frames], batch_first=True),
        scores=pad_sequence([frame["scores"].float() for frame in frames], batch_first=True),
        class_ids=pad_sequence([frame["labels"].long() for frame in frames], batch_first=True),
    )


# ---- the best boxes


def select(columns: Columns, reading: Reading, input_size: tuple[int, int]) -> Candidates:
    """Return the boxes that reach FLOOR_SCORE and do not repeat a better one, at most `reading.max_boxes`.

    `input_size` is the (width, height) of the network's input. Boxes of equal score keep their order.
    """
    reaching = (columns.scores >= FLOOR_SCORE).sum(dim=1)
    most = min(int(reaching.max()) if len(reaching) else 0, MAX_CANDIDATES)
    scores, order = columns.scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :most], order[:, :most]
    class_ids = columns.class_ids.gather(1, order)
    boxes = columns.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    boxes = reading.boxes_to_xyxy(boxes, input_size)
    stays = scores >= FLOOR_SCORE
    if not reading.layout.is_suppressed:
        stays = suppress(boxes, class_ids, stays, reading.max_overlap)
    stays = stays & (stays.cumsum(dim=1) <= reading.max_boxes)
    return Candidates(boxes, scores, class_ids, stays)


def suppress(boxes_xyxy: Tensor, class_ids: Tensor, valid: Tensor, max_overlap: float) -> Tensor:
    """Return which boxes stay, (n, k) bool, after class-wise non-maximum suppression.

    `boxes_xyxy`: (n, k, 4), each row best first; `class_ids`, `valid`: (n, k). Boxes that are not valid do
    not stay. Takes about 30 bytes for each of the n · k² pairs.

    This is the greedy algorithm without its loop over boxes. "A box stays if no better one that stays
    suppresses it" has one solution, determined from the first box on. When it is applied repeatedly to any
    guess, the first i boxes are right after i rounds; in practice all are after a handful.
    """
    suppresses = overlaps(boxes_xyxy) > max_overlap
    suppresses &= class_ids[:, :, None] == class_ids[:, None]
    suppresses = suppresses.triu(diagonal=1)  # the better one comes first
    stays = valid
    for _ in range(valid.shape[1] + 1):
        then = valid & ~(suppresses & stays[:, :, None]).any(dim=1)
        if torch.equal(then, stays):
            break
        stays = then
    return stays


def overlaps(boxes_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of every two boxes: (n, k, 4) to (n, k, k)."""
    near, far = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    sizes = (far - near).clamp(min=0)
    areas = sizes[..., 0] * sizes[..., 1]
    shared = torch.minimum(far[:, :, None], far[:, None]) - torch.maximum(near[:, :, None], near[:, None])
    shared.clamp_(min=0)
    intersection = shared[..., 0] * shared[..., 1]
    union = areas[:, :, None] + areas[:, None] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


# ---- the tensors of an output


def first_tensor(output: object) -> Tensor | None:
    """Return the first tensor in `output`: the one that matters where a network gives several."""
    return next((tensor for _, tensor in _tensors_of(output)), None)


def _named_tensor(output: object, names: Sequence[str], place: int) -> Tensor | None:
    """Return the tensor that has one of `names`; if none has a name, the one at `place`."""
    found = list(_tensors_of(output))
    for name, tensor in found:
        if name in names:
            return tensor
    unnamed = [tensor for name, tensor in found if not name]
    return unnamed[place] if len(unnamed) > place else None


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
