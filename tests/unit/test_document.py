"""Parts to a document, and a document to its other forms."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import ijson
import pytest

from app.pipeline.document import DocumentDigest, FrameTimes, pts_seconds, write_document, write_pts
from app.pipeline.formats import FormatContext, convert
from app.pipeline.options import RENDERINGS, TIMED_FORMATS, DocumentFormat, Rendering
from app.storage.parts import Part, PartStore

BOX = b'{"box":[1.5,2.0,11.0,22.5],"label":"a \\"b\\", c","score":0.75}'
BODIES = [[b"[0,[]]", b"[1,[" + BOX + b"]]"], [], [b"[4,[" + BOX + b"," + BOX + b"]]"], [b"[5,[]]"]]
SECONDS = [1.4, 1.433333, 1.533333, 1.566667]  # of frames 0, 1, 4 and 5
CONTEXT = FormatContext(video_name="clip.mp4", width=64, height=48, labels=("other", 'a "b", c'))


def pts_of(record: bytes) -> int:
    """The time stamp of a frame at 30 a second from 1.4 s on, in ticks of 1/90000."""
    return 126000 + 3000 * int(json.loads(record)[0])


def write_parts(folder: Path, bodies: list[list[bytes]]) -> list[Part]:
    store = PartStore(folder)
    store.create()
    parts = []
    for number, records in enumerate(bodies):
        with store.write(number) as writer:
            writer.append(records, [*map(pts_of, records)])
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
    report = write_document(parts, folder / "result.pairs", digest)
    content = (folder / "result.pairs").read_bytes()
    assert report.bytes == len(content)
    assert report.sha256 == hashlib.sha256(content).hexdigest()
    write_pts(parts, folder / "result.pts")
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


def test_time_stamps_are_joined_in_the_order_of_the_records(document: Path) -> None:
    stamps = struct.unpack("<4q", document.with_name("result.pts").read_bytes())
    assert stamps == (126000, 129000, 138000, 141000)


def converted(document: Path, target: DocumentFormat, *, times: bool = False) -> bytes:
    rendering = Rendering(target, times)
    destination = document.with_name(f"result.{rendering.name}")
    frame_times = FrameTimes(document.with_name("result.pts"), Fraction(1, 90000))
    convert(document, rendering, destination, CONTEXT, frame_times)
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


@pytest.mark.parametrize("rendering", [each for each in RENDERINGS if not each.is_document])
def test_every_form_of_an_empty_document_is_whole(tmp_path: Path, rendering: Rendering) -> None:
    content = converted(make_document(tmp_path, []), rendering.format, times=rendering.times)
    if rendering.format in (DocumentFormat.PAIRS, DocumentFormat.BOXES, DocumentFormat.COCO):
        json.loads(content)


@pytest.mark.parametrize("target", [DocumentFormat.PAIRS, DocumentFormat.NDJSON])
def test_a_time_is_the_third_member_of_a_record(document: Path, target: DocumentFormat) -> None:
    content = converted(document, target, times=True)
    plain = document.read_bytes()
    timed = plain
    for record, seconds in zip([r for records in BODIES for r in records], SECONDS, strict=True):
        timed = timed.replace(record, record[:-1] + b',{"pts_seconds":%s}]' % str(seconds).encode())
    if target is DocumentFormat.NDJSON:
        timed = timed.removeprefix(b"[\n").removesuffix(b"]\n").replace(b",\n", b"\n")
    assert content == timed
    assert document.read_bytes() == plain


def test_csv_has_the_time_after_the_frame_id(document: Path) -> None:
    text = converted(document, DocumentFormat.CSV, times=True).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [*rows[0]][:3] == ["frame_id", "pts_seconds", "x_min"]
    assert [(row["frame_id"], row["pts_seconds"]) for row in rows] == [
        ("1", "1.433333"),
        ("4", "1.533333"),
        ("4", "1.533333"),
    ]


def test_coco_has_the_time_on_each_image(document: Path) -> None:
    coco = json.loads(converted(document, DocumentFormat.COCO, times=True))
    assert [image["pts_seconds"] for image in coco["images"]] == SECONDS
    plain = json.loads(converted(document, DocumentFormat.COCO))
    assert coco["annotations"] == plain["annotations"]
    assert all("pts_seconds" not in image for image in plain["images"])


@pytest.mark.parametrize("stamps", [3, 5])
def test_a_form_with_times_of_other_frames_is_not_made(document: Path, stamps: int) -> None:
    document.with_name("result.pts").write_bytes(bytes(8 * stamps))
    with pytest.raises(ValueError, match="zip"):
        converted(document, DocumentFormat.PAIRS, times=True)
    assert not document.with_name("result.pairs-times").exists()


@pytest.mark.parametrize("document_format", sorted({*DocumentFormat} - {*TIMED_FORMATS}))
def test_a_format_without_a_place_for_times_has_no_rendering_with_them(
    document_format: DocumentFormat,
) -> None:
    with pytest.raises(ValueError, match="no place"):
        Rendering(document_format, times=True)


@pytest.mark.parametrize("target", TIMED_FORMATS)
def test_memory_does_not_grow_with_the_frames_that_have_times(tmp_path: Path, target: DocumentFormat) -> None:
    frames = 50_000
    document = tmp_path / "result.pairs"
    with document.open("wb") as file:
        file.write(b"[\n")
        file.writelines(b"[%d,[%s]],\n" % (number, BOX) for number in range(frames - 1))
        file.write(b"[%d,[]]\n]\n" % (frames - 1))
    document.with_name("result.pts").write_bytes(struct.pack(f"<{frames}q", *range(frames)))
    tracemalloc.start()
    try:
        converted_bytes = len(converted(document, target, times=True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < converted_bytes + 1_000_000  # the test reads the form back


@pytest.mark.parametrize(
    ("pts", "time_base", "seconds"),
    [
        (133200, Fraction(1, 90000), 1.48),
        (1, Fraction(1, 3), 0.333333),
        (2, Fraction(1, 3), 0.666667),
        (-1024, Fraction(1, 12800), -0.08),
        (-1, Fraction(1, 1_000_000_000), 0.0),
        (8_589_934_592, Fraction(1, 90000), 95443.717689),
        (1001, Fraction(1, 30000), 0.033367),
    ],
)
def test_a_time_stamp_is_told_in_seconds_of_six_decimals(
    pts: int, time_base: Fraction, seconds: float
) -> None:
    assert str(pts_seconds(pts, time_base)) == str(seconds)
