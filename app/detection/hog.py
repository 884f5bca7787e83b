"""The built-in detector ``hog-people``: upright people, without a download; a demonstration and a fallback.

Dalal and Triggs' pedestrian detector with the weights that OpenCV ships: every window of 64 × 128 pixels at
every size of a pyramid is scored (``hog_scores.py``), and overlapping windows become one box. With
OPENCV_PARAMETERS the boxes are those of OpenCV's ``HOGDescriptor.detectMultiScale``. The default parameters
differ where real scenes benefit. OpenCV asks the same margin of every window and confirms a person by several
similar windows: there are few of the largest windows, so that people who fill the frame are lost, and
thousands of the smallest, so that table legs become people. Ours ask less of large windows than of small
ones, look beyond the frame's edge, and take the best window as it is.
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
OVERLAP = 0.5  # of the smaller window's area: two windows around one person share at least this much
SIMILARITY = 0.2  # of the mean side: how far apart the edges of similar windows may lie

Windows = npt.NDArray[np.int64]  # (n, 4): left, top, width, height


class Grouping(StrEnum):
    """How the windows around one person become one box."""

    SIMILAR_WINDOWS = "similar windows"  # OpenCV's: the mean of several windows that agree
    BEST_WINDOW = "best window"  # the best of those that overlap


@dataclass(frozen=True, slots=True)
class HogParameters:
    """What decides the boxes, besides the weights. OPENCV_PARAMETERS are those of detectMultiScale.

    Its repr is part of the fingerprint.
    """

    max_side: int = 640  # pixels; larger frames are scaled down
    pyramid_scale: float = 1.1  # each level is smaller than the one before by this factor
    max_levels: int = 64
    padding: tuple[int, int] = (16, 16)  # pixels, multiples of 8, across and down, mirrored around each level
    beyond_frame: bool = True  # also try windows larger than the frame, for people who fill its height
    min_margin: float = -0.5  # the SVM's margin from which a window counts, in the smallest level
    margin_per_octave: float = 1.1  # added for windows half that size: there are many more of them
    grouping: Grouping = Grouping.BEST_WINDOW
    min_neighbours: int = 2  # with SIMILAR_WINDOWS: a box needs more windows than this
    steepness: float = 2.0  # of the logistic function that turns a margin into a score


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
        found = []
        for frame_id in range(n):
            own = frame_ids == frame_id
            windows, margins = pyramid.windows_xywh[window_ids[own]].numpy(), hits[own].double().numpy()
            if parameters.grouping is Grouping.BEST_WINDOW:
                groups = best_windows(windows, margins)
            else:
                groups = group_windows(windows, margins, min_neighbours=parameters.min_neighbours)
            boxes = torch.from_numpy(groups.boxes_xywh).float()
            boxes[:, 2:] += boxes[:, :2]
            boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
            scores = torch.sigmoid(parameters.steepness * torch.from_numpy(groups.margins)).float()
            order = torch.argsort(scores, descending=True, stable=True)
            class_ids = torch.zeros(len(order), dtype=torch.int64)
            found.append(Detections(boxes[order], scores[order], class_ids))
        return found

    def _margins(self, frames: Tensor, pyramid: _Pyramid) -> Tensor:
        """Return the margins of all windows, (windows, n), in the pyramid's order."""
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
        levels.append(
            _Level(
                make_axis(height, level_height, down, device), make_axis(width, level_width, across, device)
            )
        )
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


# ---- many overlapping windows around one person become one box


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Boxes that stand for many windows each. In no particular order."""

    boxes_xywh: npt.NDArray[np.float64]  # (n, 4) whole pixels
    margins: npt.NDArray[np.float64]  # (n,) of the group's best window


def best_windows(windows_xywh: Windows, margins: npt.NDArray[np.float64]) -> Groups:
    """Return the windows that do not overlap a better one by half of the smaller one's area, best first."""
    near, sizes = windows_xywh[:, :2], windows_xywh[:, 2:]
    far, areas = near + sizes, sizes.prod(axis=1)
    left = np.argsort(-margins, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        shared = np.minimum(far[best], far[left]) - np.maximum(near[best], near[left])
        overlap = shared.clip(min=0).prod(axis=1) / np.minimum(areas[best], areas[left])
        left = left[overlap < OVERLAP]
    return Groups(windows_xywh[kept].astype(np.float64), margins[kept])


def group_windows(windows_xywh: Windows, margins: npt.NDArray[np.float64], *, min_neighbours: int) -> Groups:
    """Return the groups of more than `min_neighbours` similar windows, as OpenCV's HOGDescriptor does.

    Windows are similar if all four edges lie within 0.2 of their mean side; a group is what similarity
    connects. A group's box is the mean of its windows; its margin is that of its best window. A small group
    inside a larger one is dropped. `min_neighbours` = 0 leaves every window as it is.
    """
    if min_neighbours <= 0 or not len(windows_xywh):
        return Groups(windows_xywh.astype(np.float64), margins.astype(np.float64))
    labels = _connected(windows_xywh)
    counts = np.bincount(labels)
    sums = np.stack([np.bincount(labels, weights=column) for column in windows_xywh.T], axis=1)
    best = np.full(len(counts), -np.inf)
    np.maximum.at(best, labels, margins)
    boxes = sums * (1.0 / counts)[:, None]
    kept = counts > min_neighbours
    boxes, counts, best = boxes[kept], counts[kept], best[kept]
    # Drop a box that lies, give or take 0.2 of the other's sides, within another one of clearly more windows.
    near, far = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    slack = np.rint(boxes[:, 2:] * SIMILARITY)
    inside = (near[:, None] >= near - slack).all(axis=2) & (far[:, None] <= far + slack).all(axis=2)
    outweighed = (counts > np.maximum(3, counts[:, None])) | (counts[:, None] < 3)
    another = ~np.eye(len(boxes), dtype=np.bool_)
    outer = ~(inside & outweighed & another).any(axis=1)
    return Groups(np.rint(boxes[outer]), best[outer])


def _connected(windows: Windows) -> npt.NDArray[np.int64]:
    """Return each window's group number, (n,)."""
    edges = np.concatenate([windows[:, :2], windows[:, :2] + windows[:, 2:]], axis=1)
    sizes = windows[:, 2:]
    labels = np.full(len(windows), -1, dtype=np.int64)
    unseen = np.arange(len(windows))
    group = 0
    while len(unseen):
        reached, unseen = [unseen[0]], unseen[1:]
        while reached:
            at = reached.pop()
            labels[at] = group
            slack = SIMILARITY * np.minimum(sizes[at], sizes[unseen]).sum(axis=1) * 0.5
            similar = (np.abs(edges[at] - edges[unseen]) <= slack[:, None]).all(axis=1)
            reached.extend(unseen[similar])
            unseen = unseen[~similar]
        group += 1
    return labels
