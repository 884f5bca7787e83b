"""Encode detections as bytes of the document: one JSON pair of frame id and boxes per frame. Pure."""

from __future__ import annotations

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
    `source_size`, rounded to 0.1 and clamped to the frame; a box without area after that is dropped.
    Best score first; ties by box, then label: an order that the record itself shows.
    """
    if len(detections.scores) == 0:
        return b"[%d,[]]" % frame_id
    limit = np.array(source_size * 2, dtype=np.float64)
    scale = limit / np.array(given_size * 2, dtype=np.float64)
    boxes = np.round(detections.boxes_xyxy.double().numpy() * scale, BOX_DECIMALS)
    # Adding 0.0 turns -0.0 into 0.0: they are equal, but written differently.
    boxes = np.clip(boxes, 0.0, limit) + 0.0
    scores: npt.NDArray[np.float64] = np.round(detections.scores.double().numpy(), SCORE_DECIMALS)
    keep = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]) & (scores >= rules.min_score)
    labels = [rules.class_names[class_id] for class_id in detections.class_ids[keep].tolist()]
    found = sorted(
        (-score, box, label)
        for score, box, label in zip(scores[keep].tolist(), boxes[keep].tolist(), labels, strict=True)
        if rules.labels is None or label in rules.labels
    )
    rows = [{"box": box, "label": label, "score": -negated} for negated, box, label in found]
    return orjson.dumps([frame_id, rows])
