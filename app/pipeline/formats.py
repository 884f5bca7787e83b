"""Convert a document to the other formats, in one or two passes and in constant memory.

Every format has the boxes of the document, and some can have the time of each frame too. CSV, COCO's
annotations and MOT have no row for a frame without boxes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from app.pipeline.document import CLOSING, OPENING, FrameTimes
from app.pipeline.options import DocumentFormat, Rendering
from app.storage.durable import atomic_write
from app.storage.parts import SEPARATOR

_LINES_OF_NO_RECORD = (OPENING.strip(), CLOSING.strip(), b"")

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
    """What a format contains beyond the document. Sizes in pixels, as displayed."""

    video_name: str
    width: int
    height: int
    labels: tuple[str, ...]  # all that the model can find, in its order


class Frame(NamedTuple):
    """The contents of a format for one frame."""

    id: int
    boxes: list[dict[str, Any]]  # as in the document
    pts_seconds: float | None  # None: no times are wanted


@dataclass(frozen=True, slots=True)
class _Source:
    """A document to be written in another format, and the times of its frames if they are wanted."""

    pairs: Path
    times: FrameTimes | None

    def frames(self) -> Iterator[Frame]:
        for record, pts_seconds in self._timed():
            frame_id, boxes = orjson.loads(record)
            yield Frame(frame_id, boxes, pts_seconds)

    def records(self) -> Iterator[bytes]:
        """Yield the document's records, with the frame's time as a third member if it is wanted.

        ``[id,[…]]`` becomes ``[id,[…],{"pts_seconds":…}]`` without being parsed.
        """
        for record, pts_seconds in self._timed():
            if pts_seconds is None:
                yield record
            else:
                time = orjson.dumps({"pts_seconds": pts_seconds})
                yield b"%s,%s]" % (record.removesuffix(b"]"), time)

    def _timed(self) -> Iterator[tuple[bytes, float | None]]:
        """Yield each record and its frame's time. ValueError if there is not one time for each record."""
        with self.pairs.open("rb") as file:  # `document.write_document` wrote a record a line
            lines = (line.rstrip(SEPARATOR) for line in file)
            records = (line for line in lines if line not in _LINES_OF_NO_RECORD)
            yield from zip(records, self.times or repeat(None), strict=self.times is not None)


def convert(
    pairs: Path, target: Rendering, destination: Path, context: FormatContext, times: FrameTimes
) -> None:
    """Write the document `pairs` as `target` to `destination`: whole and durable, or absent.

    `times` is read in step with the document if `target` has times. ValueError for the document itself.
    """
    if target.is_document:
        raise ValueError(f"{target.name} needs no conversion")
    source = _Source(pairs, times if target.times else None)
    with atomic_write(destination) as file:
        match target.format:
            case DocumentFormat.PAIRS:  # as in the document, with a third member in each record
                file.write(OPENING)
                _write_joined(file, source.records())
                file.write(CLOSING)
            case DocumentFormat.BOXES:
                boxes = ([frame.id, [box["box"] for box in frame.boxes]] for frame in source.frames())
                file.write(b"[")
                _write_joined(file, map(orjson.dumps, boxes))
                file.write(b"]\n")
            case DocumentFormat.NDJSON:
                file.writelines(record + b"\n" for record in source.records())
            case DocumentFormat.CSV:
                _write_csv(source, file)
            case DocumentFormat.COCO:
                _write_coco(source, file, context)
            case DocumentFormat.MOT:  # MOTChallenge's detections: frame numbers from 1, no identities (-1)
                for frame in source.frames():
                    for box in frame.boxes:
                        xywh = ",".join(map(str, _xywh(box["box"])))
                        file.write(f"{frame.id + 1},-1,{xywh},{box['score']},-1,-1,-1\n".encode())


def _write_joined(file: BinaryIO, values: Iterable[bytes]) -> None:
    file.writelines(SEPARATOR + value if number else value for number, value in enumerate(values))


def _write_csv(source: _Source, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        rows = csv.writer(text)
        time_column = ["pts_seconds"] if source.times else []
        rows.writerow(["frame_id", *time_column, "x_min", "y_min", "x_max", "y_max", "label", "score"])
        for frame in source.frames():
            time = [f"{frame.pts_seconds:.6f}"] if source.times else []
            rows.writerows([frame.id, *time, *box["box"], box["label"], box["score"]] for box in frame.boxes)
    finally:
        text.detach()


def _write_coco(source: _Source, file: BinaryIO, context: FormatContext) -> None:
    def image(frame: Frame) -> dict[str, Any]:
        time = {} if frame.pts_seconds is None else {"pts_seconds": frame.pts_seconds}
        size = {"width": context.width, "height": context.height}
        return {"id": frame.id, "file_name": context.video_name, "frame_id": frame.id, **size, **time}

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for frame in source.frames():
            for box in frame.boxes:
                number += 1
                x, y, width, height = _xywh(box["box"])
                yield {
                    "id": number,
                    "image_id": frame.id,
                    "category_id": category_ids[box["label"]],
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": box["score"],
                }

    category_ids = {label: number for number, label in enumerate(context.labels, start=1)}
    file.write(b'{"categories":')
    file.write(orjson.dumps([{"id": number, "name": label} for label, number in category_ids.items()]))
    file.write(b',\n"images":[')
    _write_joined(file, map(orjson.dumps, map(image, source.frames())))
    file.write(b'],\n"annotations":[')
    _write_joined(file, map(orjson.dumps, annotations()))
    file.write(b"]}\n")


def _xywh(box_xyxy: list[float]) -> tuple[float, float, float, float]:
    x_min, y_min, x_max, y_max = box_xyxy
    return x_min, y_min, round(x_max - x_min, 1), round(y_max - y_min, 1)
