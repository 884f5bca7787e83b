"""Encode detections as bytes of the document: one JSON pair of frame id and boxes per frame. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import orjson

from app.detection.detector import Detections
from app.pipeline.segment_task import RecordRules

BOX_DECIMALS = 1
SCORE_DECIMALS = 3


def encode_records(
    frame_ids: Sequence[int],
    found: Sequence[Detections],
    *,
    given_size: tuple[int, int],
    source_size: tuple[int, int],
    rules: RecordRules,
) -> list[bytes]:
    """Return the record of each frame of a batch: ``[id,[{"box":[…],"label":…,"score":…},…]]``.

    `found`: for each frame, in pixels of a frame of `given_size` (width, height). Boxes are written in pixels
    of `source_size`, rounded to 0.1 and clamped to the frame; a box without area after that is dropped.
    Best score first; ties by box, then label: an order that the record itself shows.
    """
    limit = np.array(source_size * 2, dtype=np.float64)
    scale = limit / np.array(given_size * 2, dtype=np.float64)
    boxes = np.concatenate([one.boxes_xyxy.numpy() for one in found])
    boxes = np.round(boxes * scale, BOX_DECIMALS)
    # Adding 0.0 turns -0.0 into 0.0: they are equal, but written differently.
    boxes = np.minimum(np.maximum(boxes, 0.0), limit) + 0.0
    scores = np.concatenate([one.scores.numpy() for one in found]).astype(np.float64)
    scores = np.round(scores, SCORE_DECIMALS)
    class_ids = np.concatenate([one.class_ids.numpy() for one in found])
    kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1) & (scores >= rules.min_score)
    frame_numbers = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    starts = frame_numbers[kept].searchsorted(np.arange(len(found) + 1)).tolist()
    labels = [rules.class_names[class_id] for class_id in class_ids[kept].tolist()]
    rows = list(zip((-scores[kept]).tolist(), boxes[kept].tolist(), labels, strict=True))
    records = []
    for frame_id, (start, end) in zip(frame_ids, pairwise(starts), strict=True):
        boxes_found = [
            {"box": box, "label": label, "score": -negated}
            for negated, box, label in sorted(rows[start:end])
            if rules.labels is None or label in rules.labels
        ]
        records.append(orjson.dumps([frame_id, boxes_found]))
    return records
