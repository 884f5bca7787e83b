"""Check what a model returned against the protocol.

A model is third-party code. Output that only a broken or misdeclared model can return fails the job with the
reason; output that a sound model may return at a frame's edge is corrected and counted:

=========================================================  ==========================================
not one Detections a frame, wrong shapes, dtypes, lengths  ModelFault
NaN or infinite box or score, score outside [0, 1]         ModelFault
class id without a name                                    ModelFault
inverted box (right < left, bottom < top)                  ModelFault: corners and sizes are mixed up
more than MAX_BOXES_PER_FRAME boxes                        ModelFault
box partly outside its frame                               clamped to the frame
box without area inside its frame                          dropped, counted
boxes not best first                                       sorted
=========================================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.detection.detector import Detections
from app.errors import ModelFault

MAX_BOXES_PER_FRAME = 10_000  # the largest public models return 300 to 1000
SCORE_SLACK = 1e-4  # half-precision networks end slightly above 1


def check_batch(name: str, outputs: object, frames: Tensor, class_count: int) -> tuple[list[Detections], int]:
    """Check what model `name` returned for `frames`, (n, height, width, 3), and correct it as above.

    Returns the detections, and how many boxes without area in their frame were dropped. Raises ModelFault,
    with a reason for the caller, for anything that cannot be corrected.
    """
    frame_count, height, width, _ = frames.shape
    if not isinstance(outputs, Sequence) or len(outputs) != frame_count:
        count = len(outputs) if isinstance(outputs, Sequence) else "no list of"
        raise ModelFault(f"Model {name!r} returned {count} results for {frame_count} frames.")
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    detections, dropped = [], 0
    for output in outputs:
        if not isinstance(output, Detections):
            raise ModelFault(f"Model {name!r} returned something else than detections.")
        fault = _describe_fault(output, class_count)
        if fault:
            raise ModelFault(f"Model {name!r} returned {fault}.")
        if not len(output.scores):
            detections.append(output)
            continue
        boxes = torch.minimum(output.boxes_xyxy.clamp(min=0), limits)
        kept = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)
        boxes, scores, class_ids = boxes[kept], output.scores[kept].clamp(max=1), output.class_ids[kept]
        if not (scores[:-1] >= scores[1:]).all():
            order = torch.argsort(scores, descending=True, stable=True)
            boxes, scores, class_ids = boxes[order], scores[order], class_ids[order]
        detections.append(Detections(boxes, scores, class_ids))
        dropped += len(output.scores) - len(scores)
    return detections, dropped


def _describe_fault(output: Detections, class_count: int) -> str | None:
    boxes, scores, class_ids = output.boxes_xyxy, output.scores, output.class_ids
    count = len(scores) if scores.ndim else -1
    wanted = (
        ("boxes", boxes, (count, 4), torch.float32),
        ("scores", scores, (count,), torch.float32),
        ("class ids", class_ids, (count,), torch.int64),
    )
    for what, tensor, shape, dtype in wanted:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
            return f"{what} of shape {tuple(tensor.shape)} and type {tensor.dtype} on {tensor.device.type}"
    if count > MAX_BOXES_PER_FRAME:
        return f"{count} boxes for one frame; at most {MAX_BOXES_PER_FRAME} are taken"
    values = (
        ("a box or a score that is not a finite number", boxes.isfinite().all() and scores.isfinite().all()),
        ("a score outside 0 to 1", ((scores >= 0) & (scores <= 1 + SCORE_SLACK)).all()),
        (f"a class id outside its {class_count} names", ((class_ids >= 0) & (class_ids < class_count)).all()),
        (
            "a box whose right or bottom edge lies before its left or top edge",
            (boxes[:, :2] <= boxes[:, 2:]).all(),
        ),
    )
    return next((what for what, is_sound in values if not is_sound), None)
