"""Detections to bytes: the contract's numbers, order and clamping."""

from __future__ import annotations

import orjson
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.detection.detector import Detections
from app.pipeline.frame_records import encode_records
from app.pipeline.segment_task import RecordRules

RULES = RecordRules(class_names=("person", "car"), min_score=0.3)


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Detections(table[:, :4].float(), table[:, 4].float(), table[:, 5].long())


def encode(found: Detections, *, given_size=(100, 100), source_size=(100, 100), rules=RULES):
    (record,) = encode_records([7], [found], given_size=given_size, source_size=source_size, rules=rules)
    return record


def test_a_record_looks_as_the_contract_says() -> None:
    record = encode(
        detections((412.5, 88, 466, 240.5, 0.91, 0)), given_size=(640, 480), source_size=(640, 480)
    )
    assert record == b'[7,[{"box":[412.5,88.0,466.0,240.5],"label":"person","score":0.91}]]'


def test_a_frame_without_objects_has_an_empty_list() -> None:
    assert encode(detections()) == b"[7,[]]"


def test_boxes_are_in_source_pixels() -> None:
    record = encode(detections((10, 10, 20, 30, 0.5, 0)), given_size=(100, 50), source_size=(1920, 1080))
    assert orjson.loads(record)[1][0]["box"] == [192.0, 216.0, 384.0, 648.0]


def test_the_best_score_comes_first_and_ties_go_by_box() -> None:
    record = encode(
        detections((5, 5, 9, 9, 0.5, 0), (1, 1, 9, 9, 0.50004, 1), (3, 3, 9, 9, 0.9, 0), (1, 1, 9, 8, 0.5, 0))
    )
    assert [row["box"] for row in orjson.loads(record)[1]] == [
        [3.0, 3.0, 9.0, 9.0],
        [1.0, 1.0, 9.0, 8.0],
        [1.0, 1.0, 9.0, 9.0],
        [5.0, 5.0, 9.0, 9.0],
    ]


def test_boxes_below_the_score_or_of_other_labels_are_left_out() -> None:
    found = detections((1, 1, 5, 5, 0.29, 0), (1, 1, 5, 5, 0.31, 1), (1, 1, 5, 5, 0.8, 0))
    cars = RecordRules(class_names=("person", "car"), min_score=0.3, labels=frozenset({"car"}))
    assert [row["score"] for row in orjson.loads(encode(found))[1]] == [0.8, 0.31]
    assert [row["label"] for row in orjson.loads(encode(found, rules=cars))[1]] == ["car"]


def test_a_box_that_rounding_closes_is_dropped() -> None:
    assert encode(detections((10.01, 10, 10.02, 20, 0.9, 0))) == b"[7,[]]"


coordinate = st.floats(-500, 500, width=32)


@given(
    st.lists(
        st.tuples(coordinate, coordinate, coordinate, coordinate, st.floats(0, 1, width=32)), max_size=8
    ),
    st.sampled_from([(100, 100), (640, 360), (17, 333)]),
)
def test_every_box_lies_in_the_frame_and_is_rounded(rows, source_size) -> None:
    record = encode(detections(*((*row, 0) for row in rows)), source_size=source_size)
    frame_id, boxes = orjson.loads(record)
    assert frame_id == 7
    width, height = source_size
    for box in boxes:
        x_min, y_min, x_max, y_max = box["box"]
        assert 0 <= x_min < x_max <= width
        assert 0 <= y_min < y_max <= height
        assert all(round(value, 1) == value for value in box["box"])
        assert round(box["score"], 3) == box["score"]
        assert b"-0.0" not in record
    assert boxes == sorted(boxes, key=lambda box: (-box["score"], box["box"]))
