"""What somebody would write who runs a YOLO network on a video, frame by frame: none of our code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

SIDE = 416
LEAST_SCORE = 0.25
MOST_OVERLAP = 0.45
CERTAIN_SCORE = 0.5
SAME_PLACE = 0.95  # intersection over union

Frame = npt.NDArray[np.uint8]  # (height, width, 3) RGB
Box = dict[str, Any]  # as in an answer: box, label, score


@dataclass(frozen=True)
class Difference:
    """A certain box that the other answer does not have, and its nearest one of that label."""

    frame_id: int
    found: Box
    nearest: Box | None

    def __str__(self) -> str:
        told = f"frame {self.frame_id}: {self.found['label']} {self.found['score']:.3f}"
        if self.nearest is None:
            return f"{told}, and no box of that label"
        return f"{told}, {self.nearest['score']:.3f} at {_overlap(self.found, self.nearest):.3f}"


@dataclass(frozen=True)
class Agreement:
    """How many certain boxes of one answer the other has too, in the same place and with the same label."""

    compared: int
    differences: tuple[Difference, ...]

    @property
    def agreeing(self) -> int:
        return self.compared - len(self.differences)

    @property
    def share(self) -> float:
        return self.agreeing / self.compared if self.compared else 1.0


class PlainDetector:
    """A session of onnxruntime as it comes, and the letterbox, reading and suppression around it."""

    def __init__(self, network: Path, labels: Sequence[str], *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self._labels = labels

    def detect(self, frame: Frame) -> list[Box]:
        height, width, _ = frame.shape
        scale = SIDE / max(height, width)
        size = (round(width * scale), round(height * scale))
        picture = np.full((SIDE, SIDE, 3), 114, np.uint8)
        picture[: size[1], : size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        pixels = (picture.astype(np.float32) / 255).transpose(2, 0, 1)[None]
        (output,) = self._session.run(None, {"images": pixels})[0]
        return self._read(output, scale, width, height)

    def _read(self, output: npt.NDArray[np.float32], scale: float, width: int, height: int) -> list[Box]:
        scores, class_ids = output[4:].max(axis=0), output[4:].argmax(axis=0)
        kept: list[Box] = []
        for place in np.argsort(-scores, kind="stable"):
            if scores[place] < LEAST_SCORE:
                break
            x, y, w, h = output[:4, place] / scale
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            found = {"box": corners, "label": self._labels[class_ids[place]], "score": float(scores[place])}
            if not any(
                rival["label"] == found["label"] and _overlap(rival, found) > MOST_OVERLAP for rival in kept
            ):
                kept.append(found)
        limit = np.array([width, height, width, height])
        return [found | {"box": found["box"].clip(0, limit).tolist()} for found in kept]


def decoded(video: Path) -> Iterator[Frame]:
    """Yield the frames of `video`, decoded by PyAV."""
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)  # which it is


def captured(video: Path) -> Iterator[Frame]:
    """Yield the frames of `video`, read by cv2.VideoCapture."""
    capture = cv2.VideoCapture(str(video))
    while True:
        is_there, frame = capture.read()
        if not is_there:
            break
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # type: ignore[misc]
    capture.release()


def agreement(ones: Iterable[list[Box]], others: Iterable[list[Box]]) -> Agreement:
    """Compare two answers, frame by frame: the certain boxes of `ones` with all of `others`."""
    compared, differences = 0, []
    for frame_id, (one, other) in enumerate(zip(ones, others, strict=True)):
        for found in one:
            if found["score"] > CERTAIN_SCORE:
                compared += 1
                rivals = [rival for rival in other if rival["label"] == found["label"]]
                nearest = max(rivals, key=partial(_overlap, found), default=None)
                if nearest is None or _overlap(found, nearest) <= SAME_PLACE:
                    differences.append(Difference(frame_id, found, nearest))
    return Agreement(compared, tuple(differences))


def _overlap(one: Box, other: Box) -> float:
    a, b = np.asarray(one["box"]), np.asarray(other["box"])
    shared = np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    return float(shared / union) if union > 0 else 0.0
