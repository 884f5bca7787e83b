"""The built-in detector ``hog-people``: upright people, without a download; a demonstration and a fallback.

Dalal and Triggs' pedestrian detector with the weights that OpenCV ships: every window of 64 × 128 pixels at
every size of a pyramid is scored (``hog_scores.py``), and of windows that overlap the best becomes a box.
With OPENCV_PARAMETERS the windows are those of OpenCV's ``HOGDescriptor.detectMultiScale`` before it groups
them. The default parameters differ where real scenes benefit. OpenCV asks the same margin of every window and
confirms a person by several similar windows: there are few of the largest windows, so that people who fill
the frame are lost, and thousands of the smallest, so that table legs become people. Ours ask less of large
windows than of small ones, look beyond the frame's edge, and take the best window as it is.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.detection.detector import Detections
from app.detection.hog_scores import (
    CELL,
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    Axis,
    Planes,
    WindowScorer,
    make_axis,
)
from app.detection.resize import fit_within
from app.detection.side_by_side import SideBySide

NAME = "hog-people"
REVISION = 1  # of the code; raised when it changes a box
STRIP_VALUES_CPU = 2**17  # small enough for the cache, large enough that a step is worth its call
STRIP_VALUES_CUDA = 2**23


@dataclass(frozen=True, slots=True)
class HogParameters:
    """What decides the boxes, besides the weights. Its repr is part of the fingerprint."""

    max_side: int = 640  # pixels; larger frames are scaled down
    pyramid_scale: float = 1.1  # each level is smaller than the one before by this factor
    max_levels: int = 64
    padding: tuple[int, int] = (16, 16)  # pixels, multiples of 8, across and down, mirrored around each level
    beyond_frame: bool = True  # also try windows larger than the frame, for people who fill its height
    min_margin: float = -0.5  # the SVM's margin from which a window counts, in the smallest level
    margin_per_octave: float = 1.1  # added for windows half that size: there are many more of them
    # Of the smaller window's area: two windows around one person share at least this much. None: all count.
    overlap: float | None = 0.5
    steepness: float = 2.0  # of the logistic function that turns a margin into a score


OPENCV_PARAMETERS = HogParameters(
    pyramid_scale=1.05,
    padding=(0, 0),
    beyond_frame=False,
    min_margin=0.0,
    margin_per_octave=0.0,
    overlap=None,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Pyramid:
    """All windows of a frame size, level by level."""

    frame_size: tuple[int, int]
    levels: tuple[tuple[Axis, Axis], ...]  # rows and columns
    windows_xywh: Tensor  # (windows, 4) int64, pixels of the frame, on the CPU
    min_margins: Tensor  # (windows,) float32, on the device: the least margin of each


class HogPeopleDetector:
    """Finds people who stand or walk upright, wholly visible, from 96 pixels tall. Fulfils Detector.

    A box is the detector's window, as with OpenCV: an eighth of its height lies above and below the person,
    cut off at the frame's edge. The score is 1 / (1 + exp(-2 · excess)), where excess is how far the margin
    of the box's best window exceeds the least margin of a window of its size: no score is below 0.5. It
    orders boxes; it is not a probability.
    """

    name = NAME
    class_names: Sequence[str] = ("person",)
    default_min_score = 0.5
    batch_size = 8
    precision = "float32"
    takes_device_frames = True

    def __init__(self, device: str, parameters: HogParameters | None = None) -> None:
        self.device = device
        self._parameters = parameters or HogParameters()
        weights = np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector(), dtype=np.float32).reshape(-1)
        strip_values = STRIP_VALUES_CPU if device == "cpu" else STRIP_VALUES_CUDA
        digest = hashlib.sha256(weights.tobytes())
        digest.update(f"{NAME}, revision {REVISION}, {self._parameters!r}".encode())
        self.fingerprint = digest.hexdigest()
        self._threads = SideBySide(NAME) if device == "cpu" else None
        self._scorers = [
            WindowScorer(torch.from_numpy(weights), device, strip_values=strip_values)
            for _ in range(1 if self._threads is None else self._threads.count)
        ]
        self._pyramid: _Pyramid | None = None

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return fit_within(width, height, self._parameters.max_side)

    def detect(self, frames: Tensor) -> list[Detections]:
        n, height, width, _ = frames.shape
        if self._pyramid is None or self._pyramid.frame_size != (width, height):
            self._pyramid = _make_pyramid(width, height, self._parameters, self.device)
        pyramid = self._pyramid
        if not pyramid.levels:
            return [Detections.empty() for _ in range(n)]
        excess = self._margins(frames, pyramid).t() - pyramid.min_margins
        frame_ids, window_ids = (excess >= 0).nonzero(as_tuple=True)
        hits = excess[frame_ids, window_ids].cpu()
        frame_ids, window_ids = frame_ids.cpu(), window_ids.cpu()
        parameters = self._parameters
        limits = torch.tensor([width, height, width, height])
        found = []
        for frame_id in range(n):
            own = frame_ids == frame_id
            windows, margins = pyramid.windows_xywh[window_ids[own]], hits[own].double()
            kept = torch.from_numpy(best_windows(windows.numpy(), margins.numpy(), parameters.overlap))
            boxes = windows[kept].float()
            boxes[:, 2:] += boxes[:, :2]
            boxes = torch.minimum(boxes.clamp(min=0), limits)
            scores = torch.sigmoid(parameters.steepness * margins[kept]).float()
            found.append(Detections(boxes, scores, torch.zeros(len(kept), dtype=torch.int64)))
        return found

    def _margins(self, frames: Tensor, pyramid: _Pyramid) -> Tensor:
        """Return the margins of all windows, (windows, n), in the pyramid's order."""
        planes = Planes(frames, self.device)
        todo = deque(enumerate(pyramid.levels))
        margins: list[Tensor] = [torch.empty(0)] * len(pyramid.levels)

        def score_levels(scorer: WindowScorer) -> None:
            while todo:
                try:
                    number, (rows, columns) = todo.popleft()
                except IndexError:
                    return  # another thread took the last
                margins[number] = scorer.scores(planes, rows, columns).view(-1, planes.frame_count)

        if self._threads is None:
            score_levels(self._scorers[0])
        else:
            self._threads.run(score_levels, self._scorers)
        return torch.cat(margins)


def _make_pyramid(width: int, height: int, parameters: HogParameters, device: str) -> _Pyramid:
    """Lay out the levels as OpenCV does, or more: at least one, each smaller by the same factor."""
    across, down = parameters.padding
    levels, windows, scales = [], [], []
    scale = 1.0
    for number in range(parameters.max_levels):
        level_width, level_height = round(width / scale), round(height / scale)
        columns = max(0, (level_width + 2 * across - WINDOW_WIDTH) // CELL + 1)
        rows = max(0, (level_height + 2 * down - WINDOW_HEIGHT) // CELL + 1)
        is_within = level_width >= WINDOW_WIDTH and level_height >= WINDOW_HEIGHT
        if not columns * rows or (number and not is_within and not parameters.beyond_frame):
            break
        level_rows = make_axis(height, level_height, down, device)
        levels.append((level_rows, make_axis(width, level_width, across, device)))
        top, left = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        boxes = np.empty((rows * columns, 4))  # left, top, width, height in pixels of the frame
        boxes[:, 0] = (left.ravel() * CELL - across) * scale
        boxes[:, 1] = (top.ravel() * CELL - down) * scale
        boxes[:, 2:] = WINDOW_WIDTH * scale, WINDOW_HEIGHT * scale
        windows.append(np.rint(boxes).astype(np.int64))
        scales.append(np.full(len(boxes), scale))
        if parameters.pyramid_scale <= 1:
            break
        scale *= parameters.pyramid_scale
    if not levels:
        return _Pyramid((width, height), (), torch.zeros((0, 4), dtype=torch.int64), torch.zeros(0))
    octaves = np.log2(scales[-1][0] / np.concatenate(scales))
    min_margins = torch.from_numpy(parameters.min_margin + parameters.margin_per_octave * octaves)
    return _Pyramid(
        (width, height),
        tuple(levels),
        torch.from_numpy(np.concatenate(windows)),
        min_margins.float().to(device),
    )


def best_windows(
    windows_xywh: npt.NDArray[np.int64], margins: npt.NDArray[np.float64], overlap: float | None
) -> npt.NDArray[np.int64]:
    """Return the places of the windows, best first, that do not share `overlap` with a better one.

    `windows_xywh`: (n, 4), `margins`: (n,). `overlap` is a part of the smaller window's area; None: all stay.
    """
    left = np.argsort(-margins, kind="stable")
    if overlap is None:
        return left
    near, sizes = windows_xywh[:, :2], windows_xywh[:, 2:]
    far, areas = near + sizes, sizes.prod(axis=1)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        shared = np.minimum(far[best], far[left]) - np.maximum(near[best], near[left])
        shares = shared.clip(min=0).prod(axis=1) / np.minimum(areas[best], areas[left])
        left = left[shares < overlap]
    return np.array(kept, dtype=np.int64)
