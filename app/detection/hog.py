"""The built-in detector ``hog-people``: upright people, without a download; a demonstration and a fallback.

Dalal and Triggs' pedestrian detector with the weights that OpenCV carries: every window of 64 × 128 pixels
at every size of a pyramid is scored (``hog_scores.py``), and windows that agree become a box. With
OPENCV_PARAMETERS the boxes are those of OpenCV's ``HOGDescriptor.detectMultiScale``. The default parameters
differ where real scenes gain by it. OpenCV asks the same margin of every window and confirms a person by
several similar windows: of the largest windows there are few, so that people who fill the frame are lost,
and of the smallest thousands, so that table legs become people. Ours ask less of large windows than of
small ones, look beyond the frame's edge, and take the best window as it is.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.detection.detector import Detections
from app.detection.hog_grouping import best_windows, group_windows
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


class Grouping(StrEnum):
    """How the windows around one person become one box."""

    SIMILAR_WINDOWS = "similar windows"  # OpenCV's: the mean of several windows that agree
    BEST_WINDOW = "best window"  # the best of those that overlap


@dataclass(frozen=True, slots=True)
class HogParameters:
    """What decides the boxes, besides the weights. OPENCV_PARAMETERS are those of detectMultiScale."""

    max_side: int = 640  # pixels; larger frames are scaled down
    pyramid_scale: float = 1.1  # each level is so much smaller than the one before
    max_levels: int = 64
    padding: tuple[int, int] = (16, 16)  # pixels, multiples of 8, across and down, mirrored around each level
    beyond_frame: bool = True  # go on to windows larger than the frame, for people who fill its height
    min_margin: float = -0.5  # the SVM's margin from which a window counts, in the smallest level
    margin_per_octave: float = 1.1  # so much more is asked of windows half that size: they are many more
    grouping: Grouping = Grouping.BEST_WINDOW
    min_neighbours: int = 2  # with SIMILAR_WINDOWS: a box stands for more windows than this
    steepness: float = 2.0  # of the logistic that makes a score of a margin


OPENCV_PARAMETERS = HogParameters(
    pyramid_scale=1.05,
    padding=(0, 0),
    beyond_frame=False,
    min_margin=0.0,
    margin_per_octave=0.0,
    grouping=Grouping.SIMILAR_WINDOWS,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    rows: Axis
    columns: Axis


@dataclass(frozen=True, slots=True, eq=False)
class _Pyramid:
    """All windows of a frame size, level by level."""

    frame_size: tuple[int, int]
    levels: tuple[_Level, ...]
    windows_xywh: Tensor  # (windows, 4) int64, pixels of the frame, on the CPU
    min_margins: Tensor  # (windows,) float32, on the device: what is asked of each


class HogPeopleDetector:
    """Finds people who stand or walk upright, wholly visible, from 96 pixels tall. Fulfils Detector.

    A box is the detector's window, as with OpenCV: an eighth of its height lies above and below the person,
    cut off at the frame's edge. The score is 1 / (1 + exp(-2 · excess)), where excess is by how much the
    box's best window exceeds the SVM's margin that is asked of a window of its size: 0.5 is the least that
    is reported. It orders boxes; it is no probability.
    """

    name = NAME
    class_names: Sequence[str] = ("person",)
    batch_size = 8
    precision = "float32"
    takes_device_frames = True

    def __init__(self, device: str, parameters: HogParameters | None = None) -> None:
        self.device = device
        self._parameters = parameters or HogParameters()
        weights = np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector(), dtype=np.float32).reshape(-1)
        strip_values = STRIP_VALUES_CPU if device == "cpu" else STRIP_VALUES_CUDA
        self.fingerprint = _fingerprint(weights.tobytes(), self._parameters)
        self.default_min_score = 0.5
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
        pyramid = self._pyramid_of(width, height)
        if not pyramid.levels:
            return [Detections.empty() for _ in range(n)]
        margins = torch.cat(self._margins(frames, pyramid))  # (windows, n)
        excess = margins.t() - pyramid.min_margins
        frame_ids, window_ids = (excess >= 0).nonzero(as_tuple=True)
        hits = excess[frame_ids, window_ids].cpu()
        frame_ids, window_ids = frame_ids.cpu(), window_ids.cpu()
        found = []
        for frame_id in range(n):
            own = frame_ids == frame_id
            found.append(self._boxes(pyramid.windows_xywh[window_ids[own]], hits[own], width, height))
        return found

    def _pyramid_of(self, width: int, height: int) -> _Pyramid:
        if self._pyramid is None or self._pyramid.frame_size != (width, height):
            self._pyramid = _make_pyramid(width, height, self._parameters, self.device)
        return self._pyramid

    def _margins(self, frames: Tensor, pyramid: _Pyramid) -> list[Tensor]:
        """Return the margins of each level's windows, (windows, n), in the pyramid's order."""
        planes = Planes(frames, self.device)
        todo = deque(enumerate(pyramid.levels))
        margins: list[Tensor] = [torch.empty(0)] * len(pyramid.levels)

        def score_levels(scorer: WindowScorer) -> None:
            while todo:
                try:
                    number, level = todo.popleft()
                except IndexError:
                    return  # another thread took the last
                scores = scorer.scores(planes, level.rows, level.columns)
                margins[number] = scores.view(-1, planes.frame_count)

        if self._threads is None:
            score_levels(self._scorers[0])
        else:
            self._threads.run(score_levels, self._scorers)
        return margins

    def _boxes(self, windows_xywh: Tensor, excess: Tensor, width: int, height: int) -> Detections:
        parameters = self._parameters
        windows, margins = windows_xywh.numpy(), excess.double().numpy()
        if parameters.grouping is Grouping.BEST_WINDOW:
            groups = best_windows(windows, margins)
        else:
            groups = group_windows(windows, margins, min_neighbours=parameters.min_neighbours)
        boxes = torch.from_numpy(groups.boxes_xywh).float()
        boxes[:, 2:] += boxes[:, :2]
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
        scores = torch.sigmoid(parameters.steepness * torch.from_numpy(groups.margins)).float()
        order = torch.argsort(scores, descending=True, stable=True)
        return Detections(boxes[order], scores[order], torch.zeros(len(order), dtype=torch.int64))


def _make_pyramid(width: int, height: int, parameters: HogParameters, device: str) -> _Pyramid:
    """Lay out the levels as OpenCV does, and beyond if asked: at least one, each so much smaller."""
    across, down = parameters.padding
    levels, windows, scales = [], [], []
    scale = 1.0
    for number in range(parameters.max_levels):
        level_width, level_height = round(width / scale), round(height / scale)
        boxes = _windows(level_width, level_height, scale, parameters.padding)
        is_within = level_width >= WINDOW_WIDTH and level_height >= WINDOW_HEIGHT
        if not len(boxes) or (number and not is_within and not parameters.beyond_frame):
            break
        rows = make_axis(height, level_height, down, device)
        levels.append(_Level(rows, make_axis(width, level_width, across, device)))
        windows.append(boxes)
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


def _windows(width: int, height: int, scale: float, padding: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return the windows of a level, (windows, 4): left, top, width, height in pixels of the frame."""
    across = max(0, (width + 2 * padding[0] - WINDOW_WIDTH) // CELL + 1)
    down = max(0, (height + 2 * padding[1] - WINDOW_HEIGHT) // CELL + 1)
    top, left = np.meshgrid(np.arange(down), np.arange(across), indexing="ij")
    boxes = np.empty((down * across, 4))
    boxes[:, 0] = (left.ravel() * CELL - padding[0]) * scale
    boxes[:, 1] = (top.ravel() * CELL - padding[1]) * scale
    boxes[:, 2:] = WINDOW_WIDTH * scale, WINDOW_HEIGHT * scale
    return np.rint(boxes).astype(np.int64)


def _fingerprint(weights: bytes, parameters: HogParameters) -> str:
    digest = hashlib.sha256(weights)
    digest.update(f"{NAME}, revision {REVISION}, {parameters!r}".encode())
    return digest.hexdigest()
