"""Parts to a document, and a document to its other forms."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import ijson
import pytest

from app.pipeline.document import DocumentDigest, write_document
from app.pipeline.formats import FormatContext, convert, read_pairs
from app.pipeline.options import DocumentFormat
from app.storage.parts import Part, PartStore

BOX = b'{"box":[1.5,2.0,11.0,22.5],"label":"a \\"b\\", c","score":0.75}'
BODIES = [[b"[0,[]]", b"[1,[" + BOX + b"]]"], [], [b"[4,[" + BOX + b"," + BOX + b"]]"], [b"[5,[]]"]]
CONTEXT = FormatContext(video_name="clip.mp4", width=64, height=48, labels=("other", 'a "b", c'))


def write_parts(folder: Path, bodies: list[list[bytes]]) -> list[Part]:
    store = PartStore(folder)
    store.create()
    parts = []
    for number, records in enumerate(bodies):
        with store.write(number) as writer:
            writer.append(records)
            writer.finish({})
        part = store.read(number)
        assert part is not None
        parts.append(part)
    return parts


def make_document(folder: Path, bodies: list[list[bytes]]) -> Path:
    parts = write_parts(folder / "parts", bodies)
    digest = DocumentDigest()
    for part in parts:
        digest.add(part)
    facts = write_document(parts, folder / "result.pairs", digest)
    content = (folder / "result.pairs").read_bytes()
    assert facts.size_bytes == len(content)
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    return folder / "result.pairs"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return make_document(tmp_path, BODIES)


def test_parts_are_joined_in_order_into_one_array(document: Path) -> None:
    pairs = json.loads(document.read_bytes())
    assert [frame_id for frame_id, _ in pairs] == [0, 1, 4, 5]
    assert pairs[1][1] == [{"box": [1.5, 2.0, 11.0, 22.5], "label": 'a "b", c', "score": 0.75}]


def test_an_incremental_parser_reads_the_same(document: Path) -> None:
    with document.open("rb") as file:
        assert list(ijson.items(file, "item", use_float=True)) == json.loads(document.read_bytes())


@pytest.mark.parametrize("bodies", [[], [[]], [[b"[0,[]]"]], [[], [b"[3,[]]"], []]])
def test_parts_without_records_leave_valid_json(tmp_path: Path, bodies: list[list[bytes]]) -> None:
    pairs = json.loads(make_document(tmp_path, bodies).read_bytes())
    assert [frame_id for frame_id, _ in pairs] == [json.loads(r)[0] for records in bodies for r in records]


def test_the_pairs_read_back_line_by_line(document: Path) -> None:
    assert [list(pair) for pair in read_pairs(document)] == json.loads(document.read_bytes())


def converted(document: Path, target: DocumentFormat) -> bytes:
    destination = document.with_name(f"result.{target}")
    convert(document, target, destination, CONTEXT)
    return destination.read_bytes()


def test_boxes_holds_the_coordinates_alone(document: Path) -> None:
    box = [1.5, 2.0, 11.0, 22.5]
    assert json.loads(converted(document, DocumentFormat.BOXES)) == [
        [0, []],
        [1, [box]],
        [4, [box] * 2],
        [5, []],
    ]


def test_ndjson_holds_a_pair_a_line(document: Path) -> None:
    lines = converted(document, DocumentFormat.NDJSON).splitlines()
    assert [json.loads(line) for line in lines] == json.loads(document.read_bytes())


def test_csv_holds_a_box_a_row(document: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(converted(document, DocumentFormat.CSV).decode(), newline="")))
    assert [row["frame_id"] for row in rows] == ["1", "4", "4"]
    assert rows[0] == {
        "frame_id": "1",
        "x_min": "1.5",
        "y_min": "2.0",
        "x_max": "11.0",
        "y_max": "22.5",
        "label": 'a "b", c',
        "score": "0.75",
    }


def test_mot_counts_frames_from_one(document: Path) -> None:
    lines = converted(document, DocumentFormat.MOT).decode().splitlines()
    assert lines[0] == "2,-1,1.5,2.0,9.5,20.5,0.75,-1,-1,-1"
    assert [line.split(",")[0] for line in lines] == ["2", "5", "5"]


def test_coco_lists_every_frame_and_every_box(document: Path) -> None:
    coco = json.loads(converted(document, DocumentFormat.COCO))
    assert [image["frame_id"] for image in coco["images"]] == [0, 1, 4, 5]
    assert coco["categories"] == [{"id": 1, "name": "other"}, {"id": 2, "name": 'a "b", c'}]
    assert [annotation["image_id"] for annotation in coco["annotations"]] == [1, 4, 4]
    assert coco["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [1.5, 2.0, 9.5, 20.5],
        "area": 194.75,
        "iscrowd": 0,
        "score": 0.75,
    }


@pytest.mark.parametrize("target", [f for f in DocumentFormat if f is not DocumentFormat.PAIRS])
def test_every_form_of_an_empty_document_is_whole(tmp_path: Path, target: DocumentFormat) -> None:
    content = converted(make_document(tmp_path, []), target)
    if target in (DocumentFormat.BOXES, DocumentFormat.COCO):
        json.loads(content)
