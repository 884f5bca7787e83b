"""A document in the other forms that callers ask for, converted in one or two passes and constant memory.

Every form says what the pairs say. What a form cannot say it leaves out: CSV, COCO's annotations and MOT
have no row for a frame without boxes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from app.pipeline.options import DocumentFormat
from app.storage.durable import atomic_write

Pair = tuple[int, list[dict[str, Any]]]  # frame id; boxes as in the document

MEDIA_TYPES = {
    DocumentFormat.PAIRS: "application/json",
    DocumentFormat.BOXES: "application/json",
    DocumentFormat.NDJSON: "application/x-ndjson",
    DocumentFormat.CSV: "text/csv; charset=utf-8",
    DocumentFormat.COCO: "application/json",
    DocumentFormat.MOT: "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class FormatContext:
    """What a form says beyond the pairs. Sizes in pixels, as displayed."""

    video_name: str
    width: int
    height: int
    labels: tuple[str, ...]  # all that the model can find, in its order


def convert(pairs: Path, target: DocumentFormat, destination: Path, context: FormatContext) -> None:
    """Write the document `pairs` as `target` to `destination`: whole and durable, or absent.

    ValueError for `DocumentFormat.PAIRS`, which is the document itself.
    """
    writer = _WRITERS.get(target)
    if writer is None:
        raise ValueError(f"{target} needs no conversion")
    with atomic_write(destination) as file:
        writer(pairs, file, context)


def read_pairs(pairs: Path) -> Iterator[Pair]:
    """Yield the pairs of a document written by `document.write_document`: one a line."""
    with pairs.open("rb") as file:
        for line in file:
            record = line.rstrip(b",\n")
            if record not in (b"[", b"]", b""):
                frame_id, boxes = orjson.loads(record)
                yield frame_id, boxes


def _write_array(file: BinaryIO, values: Iterator[Any]) -> None:
    separator = b"["
    for value in values:
        file.write(separator)
        file.write(orjson.dumps(value))
        separator = b",\n"
    file.write(b"[]" if separator == b"[" else b"]")


def _write_boxes(pairs: Path, file: BinaryIO, _: FormatContext) -> None:
    _write_array(file, ([frame_id, [box["box"] for box in boxes]] for frame_id, boxes in read_pairs(pairs)))
    file.write(b"\n")


def _write_ndjson(pairs: Path, file: BinaryIO, _: FormatContext) -> None:
    file.writelines(orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE) for pair in read_pairs(pairs))


def _write_csv(pairs: Path, file: BinaryIO, _: FormatContext) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        rows = csv.writer(text)
        rows.writerow(["frame_id", "x_min", "y_min", "x_max", "y_max", "label", "score"])
        for frame_id, boxes in read_pairs(pairs):
            rows.writerows([frame_id, *box["box"], box["label"], box["score"]] for box in boxes)
    finally:
        text.detach()


def _write_mot(pairs: Path, file: BinaryIO, _: FormatContext) -> None:
    """MOTChallenge's detection file: frame numbers from 1, no identities (-1)."""
    for frame_id, boxes in read_pairs(pairs):
        for box in boxes:
            x, y, width, height = _xywh(box["box"])
            file.write(f"{frame_id + 1},-1,{x},{y},{width},{height},{box['score']},-1,-1,-1\n".encode())


def _write_coco(pairs: Path, file: BinaryIO, context: FormatContext) -> None:
    category_ids = {label: number for number, label in enumerate(context.labels, start=1)}
    file.write(b'{"categories":')
    file.write(orjson.dumps([{"id": number, "name": label} for label, number in category_ids.items()]))
    file.write(b',\n"images":')
    _write_array(
        file,
        (
            {
                "id": frame_id,
                "file_name": context.video_name,
                "frame_id": frame_id,
                "width": context.width,
                "height": context.height,
            }
            for frame_id, _ in read_pairs(pairs)
        ),
    )
    file.write(b',\n"annotations":')
    _write_array(file, _coco_annotations(pairs, category_ids))
    file.write(b"}\n")


def _coco_annotations(pairs: Path, category_ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    number = 0
    for frame_id, boxes in read_pairs(pairs):
        for box in boxes:
            number += 1
            x, y, width, height = _xywh(box["box"])
            yield {
                "id": number,
                "image_id": frame_id,
                "category_id": category_ids[box["label"]],
                "bbox": [x, y, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": box["score"],
            }


def _xywh(box_xyxy: list[float]) -> tuple[float, float, float, float]:
    x_min, y_min, x_max, y_max = box_xyxy
    return x_min, y_min, round(x_max - x_min, 1), round(y_max - y_min, 1)


_WRITERS: dict[DocumentFormat, Callable[[Path, BinaryIO, FormatContext], None]] = {
    DocumentFormat.BOXES: _write_boxes,
    DocumentFormat.NDJSON: _write_ndjson,
    DocumentFormat.CSV: _write_csv,
    DocumentFormat.COCO: _write_coco,
    DocumentFormat.MOT: _write_mot,
}
