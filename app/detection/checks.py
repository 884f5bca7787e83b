"""What a model returned, held against the protocol before anyone builds on it.

A model is somebody else's code. What only a broken or misdeclared model can return is its fault and fails
the job with the reason; what a sound model may return at a frame's edge is put right and counted:

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
from dataclasses import dataclass

import torch
from torch import Tensor

from app.detection.detector import Detections
from app.errors import ModelFault

MAX_BOXES_PER_FRAME = 10_000  # the largest public models return 300 to 1000
SCORE_SLACK = 1e-4  # half-precision networks end a hair above 1


@dataclass(frozen=True, slots=True)
class Checked:
    """What a batch holds, fit to be written down."""

    detections: list[Detections]
    dropped_box_count: int  # boxes without area inside their frame


def check_batch(
    name: str, outputs: object, *, frame_count: int, width: int, height: int, class_count: int
) -> Checked:
    """Return what model `name` found in a batch of `width` × `height` frames, put right as the table says.

    Raises ModelFault, with a reason for the caller, for what cannot be put right.
    """
    if not isinstance(outputs, Sequence) or len(outputs) != frame_count:
        count = len(outputs) if isinstance(outputs, Sequence) else "no list of"
        raise ModelFault(f"Model {name!r} returned {count} results for {frame_count} frames.")
    detections, dropped = [], 0
    for output in outputs:
        found = _check_frame(name, output, width, height, class_count)
        detections.append(found)
        dropped += len(output.scores) - len(found.scores)
    return Checked(detections, dropped)


def _check_frame(name: str, output: object, width: int, height: int, class_count: int) -> Detections:
    if not isinstance(output, Detections):
        raise ModelFault(f"Model {name!r} returned something else than detections.")
    fault = _shape_fault(output) or _value_fault(output, class_count)
    if fault:
        raise ModelFault(f"Model {name!r} returned {fault}.")
    if not len(output.scores):
        return output
    return _best_first(_inside_frame(output, width, height))


def _shape_fault(output: Detections) -> str | None:
    count = len(output.scores) if output.scores.ndim else -1
    wanted = (
        ("boxes", output.boxes_xyxy, (count, 4), torch.float32),
        ("scores", output.scores, (count,), torch.float32),
        ("class ids", output.class_ids, (count,), torch.int64),
    )
    for what, tensor, shape, dtype in wanted:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
            return f"{what} of shape {tuple(tensor.shape)} and type {tensor.dtype} on {tensor.device.type}"
    if count > MAX_BOXES_PER_FRAME:
        return f"{count} boxes for one frame; at most {MAX_BOXES_PER_FRAME} are taken"
    return None


def _value_fault(output: Detections, class_count: int) -> str | None:
    boxes, scores, class_ids = output.boxes_xyxy, output.scores, output.class_ids
    if not (_all(boxes.isfinite()) and _all(scores.isfinite())):
        return "a box or a score that is not a finite number"
    if not _all((scores >= 0) & (scores <= 1 + SCORE_SLACK)):
        return "a score outside 0 to 1"
    if not _all((class_ids >= 0) & (class_ids < class_count)):
        return f"a class id outside its {class_count} names"
    if not _all(boxes[:, :2] <= boxes[:, 2:]):
        return "a box whose right or bottom edge lies before its left or top edge"
    return None


def _all(condition: Tensor) -> bool:
    return bool(condition.all())


def _inside_frame(output: Detections, width: int, height: int) -> Detections:
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum(output.boxes_xyxy.clamp(min=0), limits)
    kept = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)
    return Detections(boxes[kept], output.scores[kept].clamp(max=1), output.class_ids[kept])


def _best_first(output: Detections) -> Detections:
    if _all(output.scores[:-1] >= output.scores[1:]):
        return output
    order = torch.argsort(output.scores, descending=True, stable=True)
    return Detections(output.boxes_xyxy[order], output.scores[order], output.class_ids[order])
