"""Detections to the bytes of the document: one JSON pair of frame id and boxes a frame. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson

from app.detection.detector import Detections
from app.pipeline.segment_task import RecordRules

BOX_DECIMALS = 1
SCORE_DECIMALS = 3


def encode_record(
    frame_id: int,
    detections: Detections,
    *,
    given_size: tuple[int, int],
    source_size: tuple[int, int],
    rules: RecordRules,
) -> bytes:
    """Return the record of one frame: ``[id,[{"box":[…],"label":…,"score":…},…]]``.

    `detections` are in pixels of a frame of `given_size` (width, height); boxes are written in pixels of
    `source_size`, rounded to 0.1 and clamped to the frame; a box that is left without an inside is dropped.
    Best score first; ties by box, then label: an order that can be checked from the record alone.
    """
    if len(detections.scores) == 0:
        return b"[%d,[]]" % frame_id
    boxes = _to_source(detections.boxes_xyxy.numpy(), given_size, source_size)
    scores: npt.NDArray[np.float64] = np.round(detections.scores.double().numpy(), SCORE_DECIMALS)
    has_inside = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    keep = has_inside & (scores >= rules.min_score)
    labels = [rules.class_names[class_id] for class_id in detections.class_ids[keep].tolist()]
    rows = _rows(boxes[keep], scores[keep], labels, rules)
    return orjson.dumps([frame_id, rows])


def _to_source(
    boxes_xyxy: npt.NDArray[np.float32], given_size: tuple[int, int], source_size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    scale = np.array(source_size * 2, dtype=np.float64) / np.array(given_size * 2, dtype=np.float64)
    limit = np.array(source_size * 2, dtype=np.float64)
    scaled: npt.NDArray[np.float64] = np.round(boxes_xyxy.astype(np.float64) * scale, BOX_DECIMALS)
    # Adding 0.0 turns -0.0 into 0.0: both are equal, but they are written differently.
    return np.clip(scaled, 0.0, limit) + 0.0


def _rows(
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    labels: Sequence[str],
    rules: RecordRules,
) -> list[dict[str, object]]:
    found = [
        (-score, box, label)
        for score, box, label in zip(scores.tolist(), boxes.tolist(), labels, strict=True)
        if rules.labels is None or label in rules.labels
    ]
    found.sort()
    return [{"box": box, "label": label, "score": -negated} for negated, box, label in found]
