"""What 16 bits do to a model's boxes: measured on drawn scenes, against the same network in float32."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from app.detection.detector import Detections, Detector
from app.detection.golden import golden_scenes
from app.detection.suppression import overlaps

SCENE_SIZE = (1280, 720)
SAME_PLACE = 0.95  # intersection over union of boxes that are taken for equal
SAME_THING = 0.5  # … of boxes that are compared


class PrecisionEffect(TypedDict):
    """How boxes differ from those of float32. Plain JSON values, so that it can be kept.

    Counted are the boxes of either with the model's default score or more. A count of 0 tells nothing.
    """

    boxes: int
    matched: int  # that the other has too: the same label, intersection over union above 0.95
    score_difference: float  # the largest between two boxes of one thing
    box_difference_pixels: float  # the largest of a side, in pixels of a 1280 × 720 frame


def measure_effect(lowered: Detector, reference: Detector) -> PrecisionEffect:
    """Compare the boxes of `lowered` with those of `reference`. Raises whatever the model raises."""
    width, height = lowered.frame_size(*SCENE_SIZE)
    scale = torch.tensor([SCENE_SIZE[0] / width, SCENE_SIZE[1] / height] * 2)
    effect: PrecisionEffect = {
        "boxes": 0,
        "matched": 0,
        "score_difference": 0.0,
        "box_difference_pixels": 0.0,
    }
    for scene in golden_scenes(width, height):
        with torch.inference_mode():
            (ours,), (theirs,) = (model.detect(scene[None]) for model in (lowered, reference))
        for one, other in ((ours, theirs), (theirs, ours)):
            _compare(effect, one, other, scale, lowered.default_min_score)
    effect["score_difference"] = round(effect["score_difference"], 4)
    effect["box_difference_pixels"] = round(effect["box_difference_pixels"], 2)
    return effect


def _compare(
    effect: PrecisionEffect, one: Detections, other: Detections, scale: Tensor, min_score: float
) -> None:
    """Add to `effect` what the boxes of `one` are in `other`, where boxes with lower scores count too."""
    count = int((one.scores >= min_score).sum())  # the best come first
    effect["boxes"] += count
    if count == 0 or len(other.scores) == 0:
        return
    together = torch.cat([one.boxes_xyxy[:count], other.boxes_xyxy])
    shared = overlaps(together[None])[0, :count, count:]  # (count, k)
    shared = shared * (one.class_ids[:count, None] == other.class_ids)
    overlap, partner = shared.max(dim=1)
    effect["matched"] += int((overlap > SAME_PLACE).sum())
    is_same = overlap > SAME_THING
    scores = (one.scores[:count] - other.scores[partner]).abs()[is_same]
    sides = ((one.boxes_xyxy[:count] - other.boxes_xyxy[partner]) * scale).abs()[is_same].flatten()
    effect["score_difference"] = max([effect["score_difference"], *scores.tolist()])
    effect["box_difference_pixels"] = max([effect["box_difference_pixels"], *sides.tolist()])
