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

import numpy as np
import torch
from torch import Tensor

from app.detection.detector import Detections, detections_of
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
    for output in outputs:
        if not isinstance(output, Detections):
            raise ModelFault(f"Model {name!r} returned something else than detections.")
        fault = _describe_shapes(output)
        if fault:
            raise ModelFault(f"Model {name!r} returned {fault}.")
    # All frames together, in numpy: torch takes five times as long for a step on so few numbers.
    boxes = np.concatenate([output.boxes_xyxy.numpy(force=True) for output in outputs])
    scores = np.concatenate([output.scores.numpy(force=True) for output in outputs])
    class_ids = np.concatenate([output.class_ids.numpy(force=True) for output in outputs])
    values = (
        (
            "a box or a score that is not a finite number",
            np.isfinite(boxes).all() and np.isfinite(scores).all(),
        ),
        ("a score outside 0 to 1", ((scores >= 0) & (scores <= 1 + SCORE_SLACK)).all()),
        (f"a class id outside its {class_count} names", ((class_ids >= 0) & (class_ids < class_count)).all()),
        (
            "a box whose right or bottom edge lies before its left or top edge",
            (boxes[:, :2] <= boxes[:, 2:]).all(),
        ),
    )
    for what, is_sound in values:
        if not is_sound:
            raise ModelFault(f"Model {name!r} returned {what}.")
    frame_numbers = np.repeat(np.arange(frame_count), [len(output.scores) for output in outputs])
    boxes = np.minimum(np.maximum(boxes, 0), np.array([width, height, width, height], np.float32))
    scores = np.minimum(scores, 1)
    order = np.lexsort((-scores, frame_numbers))
    kept = order[(boxes[:, :2] < boxes[:, 2:]).all(axis=1)[order]]
    starts = frame_numbers[kept].searchsorted(np.arange(frame_count + 1))
    return detections_of(boxes[kept], scores[kept], class_ids[kept], starts), len(order) - len(kept)


def _describe_shapes(output: Detections) -> str | None:
    """Return what is wrong with the shapes and types of a frame's detections, None if nothing is."""
    boxes, scores, class_ids = output.boxes_xyxy, output.scores, output.class_ids
    count = len(scores) if scores.ndim else -1
    wanted = (
        ("boxes", boxes, (count, 4), torch.float32),
        ("scores", scores, (count,), torch.float32),
        ("class ids", class_ids, (count,), torch.int64),
    )
    for what, tensor, shape, dtype in wanted:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
            return f"{what} of shape {tuple(tensor.shape)} and type {tensor.dtype} on {tensor.device.type}"
    if count > MAX_BOXES_PER_FRAME:
        return f"{count} boxes for one frame; at most {MAX_BOXES_PER_FRAME} are taken"
    return None
