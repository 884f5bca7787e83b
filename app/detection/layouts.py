"""What the numbers mean that a network puts out: from its raw output to boxes, batched, on its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from app.detection.outputs import first_tensor, frame_dictionaries, named_tensor
from app.detection.suppression import suppress

# The least score that is worth carrying on: callers cannot ask for less than is kept here.
FLOOR_SCORE = 0.05
MAX_CANDIDATES = 1000  # a frame, best first, before suppression
MAX_BOXES = 300  # a frame, after it


class Layout(StrEnum):
    """How a network's output is laid out; C classes, A anchors, k boxes."""

    YOLO = "yolo"  # (n, 4 + C, A): box, class scores. YOLOv8 and later
    YOLO_OBJECTNESS = "yolo-objectness"  # (n, A, 5 + C): box, objectness, class scores. YOLOv5, YOLOX
    END_TO_END = "end-to-end"  # (n, k, 6): box, score, class; already suppressed
    DETR = "detr"  # logits (n, k, C + 1) with "no object" as the last class, and boxes (n, k, 4)
    DETR_SIGMOID = "detr-sigmoid"  # logits (n, k, C), and boxes (n, k, 4)
    TORCHVISION = "torchvision"  # a dictionary a frame: boxes (k, 4), labels (k,), scores (k,)

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
        """Whether the network itself leaves out what repeats a better box."""
        return self not in (Layout.YOLO, Layout.YOLO_OBJECTNESS)

    @property
    def box_format(self) -> BoxFormat:
        corners = self in (Layout.END_TO_END, Layout.TORCHVISION)
        return BoxFormat.CORNERS if corners else BoxFormat.CENTRE_SIZE

    @property
    def coordinates(self) -> Coordinates:
        fractions = self in (Layout.DETR, Layout.DETR_SIGMOID)
        return Coordinates.FRACTIONS if fractions else Coordinates.PIXELS


class BoxFormat(StrEnum):
    """What the four numbers of a box are."""

    CENTRE_SIZE = "centre-size"  # centre x, centre y, width, height
    CORNER_SIZE = "corner-size"  # left, top, width, height
    CORNERS = "corners"  # left, top, right, bottom


class Coordinates(StrEnum):
    """In what a box is measured."""

    PIXELS = "pixels"  # of the network's input
    FRACTIONS = "fractions"  # of its width and height


@dataclass(frozen=True, slots=True)
class Reading:
    """How a network's output is to be read."""

    layout: Layout
    class_count: int
    max_overlap: float = 0.45
    max_boxes: int = MAX_BOXES  # a frame
    box_format: BoxFormat | None = None  # None: as is usual with the layout
    coordinates: Coordinates | None = None

    def corners(self, boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Turn boxes, (…, 4), into left, top, right, bottom in pixels of the input of (width, height)."""
        boxes = _CORNERS[self.box_format or self.layout.box_format](boxes)
        if (self.coordinates or self.layout.coordinates) is Coordinates.PIXELS:
            return boxes
        return boxes * boxes.new_tensor(input_size * 2)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Boxes of a batch, each frame's best first, filled up to the frame with the most."""

    boxes_xyxy: Tensor  # (n, k, 4) pixels of the input
    scores: Tensor  # (n, k)
    class_ids: Tensor  # (n, k) int64
    valid: Tensor  # (n, k) bool: not filling


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What a network puts out, as its layout names it; equal names for every layout."""

    boxes: Tensor  # (n, k, 4) as the network gives them
    scores: Tensor  # (n, k)
    class_ids: Tensor  # (n, k) int64


def read_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    """Return what `output` holds for `frame_count` frames, or None if it is not of the layout."""
    if reading.layout is Layout.TORCHVISION:
        return _dictionary_columns(frame_dictionaries(output), frame_count)
    if reading.layout in (Layout.DETR, Layout.DETR_SIGMOID):
        return _query_columns(output, reading, frame_count)
    dense = first_tensor(output)
    if dense is None or not _is_dense_output(dense, reading.layout, reading.class_count, frame_count):
        return None
    return _dense_columns(dense.float(), reading.layout)


def fitting_layouts(output: object, class_count: int, frame_count: int) -> list[Layout]:
    """Return the layouts that `output` could be of."""
    readings = [Reading(layout, class_count) for layout in Layout]
    return [reading.layout for reading in readings if read_columns(output, reading, frame_count) is not None]


def select(columns: Columns, reading: Reading, input_size: tuple[int, int]) -> Candidates:
    """Return the boxes that are worth carrying on, those that repeat a better one left out.

    `input_size` is the (width, height) of the network's input.
    """
    best = _best(columns)
    boxes = reading.corners(best.boxes_xyxy, input_size)
    stays = best.valid
    if not reading.layout.is_suppressed:
        stays = suppress(boxes, best.class_ids, best.valid, reading.max_overlap)
    stays = stays & (stays.cumsum(dim=1) <= reading.max_boxes)
    return Candidates(boxes, best.scores, best.class_ids, stays)


# ---- each layout's columns


def _is_dense_output(output: Tensor, layout: Layout, class_count: int, frame_count: int) -> bool:
    if output.ndim != 3 or output.shape[0] != frame_count:
        return False
    if layout is Layout.YOLO:
        return output.shape[1] == 4 + class_count
    return output.shape[2] == (6 if layout is Layout.END_TO_END else 5 + class_count)


def _query_columns(output: object, reading: Reading, frame_count: int) -> Columns | None:
    logits = named_tensor(output, ("logits", "pred_logits"), 0)
    boxes = named_tensor(output, ("pred_boxes", "boxes"), 1)
    is_softmax = reading.layout is Layout.DETR
    if logits is None or boxes is None or logits.ndim != 3:
        return None
    if boxes.shape != (frame_count, logits.shape[1], 4):
        return None
    if logits.shape != (frame_count, boxes.shape[1], reading.class_count + is_softmax):
        return None
    return (
        _softmax_columns(logits, boxes) if is_softmax else _sigmoid_columns(logits, boxes, reading.max_boxes)
    )


def _dense_columns(output: Tensor, layout: Layout) -> Columns:
    if layout is Layout.END_TO_END:
        return Columns(output[..., :4], output[..., 4], output[..., 5].long())
    if layout is Layout.YOLO:
        scores, class_ids = output[:, 4:].max(dim=1)
        return Columns(output[:, :4].transpose(1, 2), scores, class_ids)
    scores, class_ids = output[..., 5:].max(dim=2)
    return Columns(output[..., :4], scores * output[..., 4], class_ids)


def _softmax_columns(logits: Tensor, boxes: Tensor) -> Columns:
    scores, class_ids = logits.float().softmax(dim=2)[..., :-1].max(dim=2)
    return Columns(boxes.float(), scores, class_ids)


def _sigmoid_columns(logits: Tensor, boxes: Tensor, max_boxes: int) -> Columns:
    """Every class of every query is a box of its own; the best stay."""
    query_count, class_count = logits.shape[1:]
    kept = min(max_boxes, query_count * class_count)
    scores, places = logits.float().sigmoid().flatten(1).topk(kept, dim=1)
    queries = (places // class_count)[..., None].expand(-1, -1, 4)
    return Columns(boxes.float().gather(1, queries), scores, places % class_count)


def _dictionary_columns(frames: Sequence[Mapping[str, Tensor]] | None, frame_count: int) -> Columns | None:
    if frames is None or len(frames) != frame_count or not all(map(_is_whole, frames)):
        return None
    return Columns(
        boxes=pad_sequence([frame["boxes"].float() for frame in frames], batch_first=True),
        scores=pad_sequence([frame["scores"].float() for frame in frames], batch_first=True),
        class_ids=pad_sequence([frame["labels"].long() for frame in frames], batch_first=True),
    )


def _is_whole(frame: Mapping[str, Tensor]) -> bool:
    boxes, labels, scores = frame["boxes"], frame["labels"], frame["scores"]
    return boxes.ndim == 2 and boxes.shape[1] == 4 and labels.shape == scores.shape == boxes.shape[:1]


# ---- boxes


def _centre_size_to_corners(boxes: Tensor) -> Tensor:
    centres, halves = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)


def _corner_size_to_corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


_CORNERS: Mapping[BoxFormat, Callable[[Tensor], Tensor]] = {
    BoxFormat.CENTRE_SIZE: _centre_size_to_corners,
    BoxFormat.CORNER_SIZE: _corner_size_to_corners,
    BoxFormat.CORNERS: lambda boxes: boxes,
}


def _best(columns: Columns) -> Candidates:
    """Keep what reaches the floor, best first, at most MAX_CANDIDATES; equal scores in their first order."""
    reaching = (columns.scores >= FLOOR_SCORE).sum(dim=1)
    most = min(int(reaching.max()) if len(reaching) else 0, MAX_CANDIDATES)
    scores, order = columns.scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :most], order[:, :most]
    return Candidates(
        boxes_xyxy=columns.boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        scores=scores,
        class_ids=columns.class_ids.gather(1, order),
        valid=scores >= FLOOR_SCORE,
    )
