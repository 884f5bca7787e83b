"""What 16 bits do to a model's boxes: measured on drawn scenes, against the same network in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from app.detection.detector import Detections, Detector
from app.detection.golden import golden_scenes
from app.detection.model_facts import PrecisionEffect
from app.detection.suppression import overlaps

SCENE_SIZE = (1280, 720)
SAME_PLACE = 0.95  # intersection over union of boxes that are taken for equal
SAME_THING = 0.5  # … of boxes that are compared


def measure_effect(lowered: Detector, reference: Detector) -> PrecisionEffect:
    """Compare the boxes of `lowered` with those of `reference`. Raises whatever the model raises."""
    width, height = lowered.frame_size(*SCENE_SIZE)
    scale = torch.tensor([SCENE_SIZE[0] / width, SCENE_SIZE[1] / height] * 2)
    effects = []
    for scene in golden_scenes(width, height):
        with torch.inference_mode():
            (ours,), (theirs,) = (model.detect(scene[None]) for model in (lowered, reference))
        for one, other in ((ours, theirs), (theirs, ours)):
            effects.append(_compare(one, other, scale, lowered.default_min_score))
    return PrecisionEffect(
        boxes=sum(effect.boxes for effect in effects),
        matched=sum(effect.matched for effect in effects),
        score_difference=round(max(effect.score_difference for effect in effects), 4),
        box_difference_pixels=round(max(effect.box_difference_pixels for effect in effects), 2),
    )


def _compare(one: Detections, other: Detections, scale: Tensor, min_score: float) -> PrecisionEffect:
    """Return what the boxes of `one` are in `other`, where boxes with lower scores count too."""
    count = int((one.scores >= min_score).sum())  # the best come first
    if count == 0 or len(other.scores) == 0:
        return PrecisionEffect(boxes=count, matched=0, score_difference=0.0, box_difference_pixels=0.0)
    together = torch.cat([one.boxes_xyxy[:count], other.boxes_xyxy])
    shared = overlaps(together[None])[0, :count, count:]  # (count, k)
    shared = shared * (one.class_ids[:count, None] == other.class_ids)
    overlap, partner = shared.max(dim=1)
    is_same = overlap > SAME_THING
    scores = (one.scores[:count] - other.scores[partner]).abs()[is_same]
    sides = ((one.boxes_xyxy[:count] - other.boxes_xyxy[partner]) * scale).abs()[is_same].flatten()
    return PrecisionEffect(
        boxes=count,
        matched=int((overlap > SAME_PLACE).sum()),
        score_difference=max(scores.tolist(), default=0.0),
        box_difference_pixels=max(sides.tolist(), default=0.0),
    )
