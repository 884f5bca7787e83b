from __future__ import annotations

import pytest

from app.detection.model_formats.declaration import Declaration, read_declaration
from app.detection.network_output import Layout
from app.detection.resize import ResizePolicy
from app.errors import ModelFault

AS_OBJECTS = {"names": {"0": "person", "1": "car"}, "imgsz": [320, 640], "task": "detect", "stride": 32}
AS_TEXT = {"names": "{0: 'person', 1: 'car'}", "imgsz": "[320, 640]", "task": "detect", "stride": "32"}


@pytest.mark.parametrize("metadata", [AS_OBJECTS, AS_TEXT], ids=["objects", "text"])
def test_an_exporters_metadata_says_labels_and_input(metadata: dict[str, object]) -> None:
    declaration = read_declaration("m", metadata, {})
    assert declaration == Declaration(labels=("person", "car"), input=(640, 320))
    assert declaration.layout is Layout.YOLO
    assert declaration.resize is ResizePolicy.LETTERBOX


def test_labels_are_in_the_order_of_their_numbers() -> None:
    names = {str(number): f"label {number}" for number in reversed(range(12))}
    declaration = read_declaration("m", {"names": names, "imgsz": 64}, {})
    assert declaration.labels == tuple(f"label {number}" for number in range(12))
    assert declaration.input == (64, 64)


def test_the_administrators_word_goes_first() -> None:
    overrides = {"layout": "yolo-objectness", "resize": "stretch", "min_score": 0.4, "labels": ["a", "b"]}
    declaration = read_declaration("m", AS_TEXT, overrides)
    assert declaration.layout is Layout.YOLO_OBJECTNESS
    assert declaration.resize is ResizePolicy.STRETCH
    assert declaration.min_score == 0.4
    assert declaration.labels == ("a", "b")


@pytest.mark.parametrize(
    ("metadata", "overrides", "reason"),
    [
        ({}, {}, "labels is missing; input is missing"),
        (AS_TEXT, {"layot": "yolo"}, "layot is not one of labels, input, batch, layout"),
        (AS_TEXT, {"layout": "yolov9"}, "layout: Input should be 'yolo'"),
        (AS_TEXT, {"min_score": 2}, "min_score"),
        (AS_TEXT | {"task": "segment"}, {}, "task 'segment'"),
        (AS_TEXT | {"names": "{0: 'a', 2: 'b'}"}, {}, "numbers are not 0 to 1"),
        (AS_TEXT | {"names": "person"}, {}, "not a list of labels"),
        (AS_TEXT | {"imgsz": "wide"}, {}, "input is missing"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    metadata: dict[str, object], overrides: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelFault, match=reason):
        read_declaration("m", metadata, overrides)
