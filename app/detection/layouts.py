"""What the numbers mean that a network puts out: from its raw output to boxes, batched, on its device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from app.detection.suppression import suppress

# The least score that is worth carrying on: callers cannot ask for less than is kept here.
FLOOR_SCORE = 0.05
MAX_CANDIDATES = 1000  # a frame, best first, before suppression
MAX_BOXES = 300  # a frame, after it


class Layout(StrEnum):
    """How a network's output is laid out; C classes, A anchors, coordinates in pixels of its input."""

    YOLO = "yolo"  # (n, 4 + C, A): centre x, centre y, width, height, class scores. YOLOv8 and later
    YOLO_OBJECTNESS = (
        "yolo-objectness"  # (n, A, 5 + C): the same with an objectness before them. YOLOv5, YOLOX
    )
    END_TO_END = "end-to-end"  # (n, k, 6): left, top, right, bottom, score, class; already suppressed

    def describe(self, class_count: int) -> str:
        return {
            Layout.YOLO: f"(n, {4 + class_count}, anchors)",
            Layout.YOLO_OBJECTNESS: f"(n, anchors, {5 + class_count})",
            Layout.END_TO_END: "(n, boxes, 6)",
        }[self]

    def fits(self, shape: tuple[int, ...], class_count: int) -> bool:
        """Tell whether an output of `shape` can be of this layout."""
        if len(shape) != 3:
            return False
        if self is Layout.YOLO:
            return shape[1] == 4 + class_count
        return shape[2] == (6 if self is Layout.END_TO_END else 5 + class_count)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Boxes of a batch, each frame's best first, filled up to the frame with the most."""

    boxes_xyxy: Tensor  # (n, k, 4) pixels of the input
    scores: Tensor  # (n, k)
    class_ids: Tensor  # (n, k) int64
    valid: Tensor  # (n, k) bool: not filling


def read_output(output: Tensor, layout: Layout, *, max_overlap: float) -> Candidates:
    """Return the boxes that a network's output holds, those that repeat a better one left out.

    `output` is of `layout`. With END_TO_END the network has suppressed already.
    """
    boxes, scores, class_ids = _columns(output.float(), layout)
    candidates = _best(boxes, scores, class_ids)
    if layout is Layout.END_TO_END:
        return candidates
    stays = suppress(candidates.boxes_xyxy, candidates.class_ids, candidates.valid, max_overlap)
    stays &= stays.cumsum(dim=1) <= MAX_BOXES
    return Candidates(candidates.boxes_xyxy, candidates.scores, candidates.class_ids, stays)


def _columns(output: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (n, A, 4) as corners, and each one's best score and its class, (n, A)."""
    if layout is Layout.END_TO_END:
        return output[..., :4], output[..., 4], output[..., 5].long()
    if layout is Layout.YOLO:
        boxes, class_scores = output[:, :4].transpose(1, 2), output[:, 4:]
        scores, class_ids = class_scores.max(dim=1)
    else:
        boxes = output[..., :4]
        scores, class_ids = output[..., 5:].max(dim=2)
        scores = scores * output[..., 4]
    return _corners(boxes), scores, class_ids


def _corners(boxes_cxcywh: Tensor) -> Tensor:
    centres, halves = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)


def _best(boxes: Tensor, scores: Tensor, class_ids: Tensor) -> Candidates:
    """Keep what reaches the floor, best first, at most MAX_CANDIDATES; equal scores in their first order."""
    most = int((scores >= FLOOR_SCORE).sum(dim=1).max())
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    ordered, order = ordered[:, : min(most, MAX_CANDIDATES)], order[:, : min(most, MAX_CANDIDATES)]
    return Candidates(
        boxes_xyxy=boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        scores=ordered,
        class_ids=class_ids.gather(1, order),
        valid=ordered >= FLOOR_SCORE,
    )
