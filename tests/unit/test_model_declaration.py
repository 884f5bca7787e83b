from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from app.detection.model_formats.declaration import Declaration, Metadata, read_metadata
from app.errors import ModelFault

AS_OBJECTS: dict[str, object] = {
    "names": {"0": "person", "1": "car"},
    "imgsz": [320, 640],
    "task": "pose",
    "author": "Ultralytics",
    "head": "Pose",
    "kpt_shape": [17, 3],
    "args": {"nms": True},
}
AS_TEXT: dict[str, object] = {
    "names": "{0: 'person', 1: 'car'}",
    "imgsz": "[320, 640]",
    "task": "pose",
    "author": "Ultralytics",
    "head": "Pose",
    "kpt_shape": "[17, 3]",
    "args": "{'nms': True, 'quantize': None}",
}


@pytest.mark.parametrize("metadata", [AS_OBJECTS, AS_TEXT], ids=["objects", "text"])
def test_an_exporters_metadata_are_read(metadata: dict[str, object]) -> None:
    assert read_metadata("m", metadata) == Metadata(
        labels=("person", "car"),
        input=(640, 320),
        author="Ultralytics",
        task="pose",
        head="Pose",
        key_point_columns=51,
    )


def test_the_metadata_of_yolov5_are_read() -> None:
    metadata = {"shape": [1, 3, 320, 640], "stride": 32, "names": ["person", "car"]}
    found = read_metadata("m", metadata)
    assert found == Metadata(labels=("person", "car"), input=(640, 320), is_of_yolov5=True)
    assert not read_metadata("m", metadata | {"task": "detect"}).is_of_yolov5


def test_labels_are_in_the_order_of_their_numbers() -> None:
    names = {str(number): f"label {number}" for number in reversed(range(12))}
    metadata = read_metadata("m", {"names": names, "imgsz": 64})
    assert metadata.labels == tuple(f"label {number}" for number in range(12))
    assert metadata.input == (64, 64)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"names": "{'a': 'b'}"}, "numbers are not from 0"),
        ({"names": {"999999999": "a"}}, "numbers are not from 0"),
        ({"names": "person"}, "not a list of labels"),
    ],
)
def test_wrong_labels_are_named(metadata: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelFault, match=reason):
        read_metadata("m", metadata)


def test_a_number_without_a_label_is_its_own() -> None:
    assert read_metadata("m", {"names": "{0: 'a', 2: 'b'}"}).labels == ("a", "1", "b")
    assert read_metadata("m", {"names": "{}"}).labels is None


@pytest.mark.parametrize(
    "odd",
    [
        {"imgsz": '["a", 1]'},
        {"kpt_shape": "['a', 2]"},
        {"imgsz": "{{}}"},
        {"imgsz": "{[]: 1}"},
        {"kpt_shape": "[" * 100_000},
        {"description": "(" * 3000},
    ],
)
def test_odd_metadata_are_passed_over(odd: dict[str, object]) -> None:
    assert read_metadata("m", odd) == Metadata()


def test_a_size_that_is_none_is_passed_over() -> None:
    assert read_metadata("m", {"imgsz": "wide"}).input is None


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({}, "labels is missing; input is missing; layout is missing"),
        ({"layot": "yolo"}, "layot is not one of labels, input, batch, layout"),
        ({"layout": "yolov9"}, "layout: Input should be 'yolo'"),
        ({"outputs": {"box": "dets"}}, "outputs.box"),
        ({"min_score": 2}, "min_score"),
    ],
)
def test_what_is_missing_or_wrong_is_named(declared: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelFault, match=reason):
        Declaration.of("m", declared)


def test_the_declarations_that_the_page_on_exporters_advises_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exporters.md").read_text()
    blocks = re.findall(r"^    layout = .*\n(?:    .*\n?)*", page, flags=re.MULTILINE)
    assert len(blocks) == page.count("\n## ")
    for block in blocks:
        declared = tomllib.loads(re.sub(r"^    ", "", block, flags=re.MULTILINE))
        assert Declaration.of("yard", {"labels": ("car",), "input": (640, 640), **declared}).layout
