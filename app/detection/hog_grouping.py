"""Many overlapping windows around one person become one box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

OVERLAP = 0.5  # of the smaller window's area: so much of it two windows around one person share
SIMILARITY = 0.2  # of the mean side: how far edges of the same thing may lie apart

Boxes = npt.NDArray[np.int64]  # (n, 4): left, top, width, height


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Boxes that stand for many windows each. In no particular order."""

    boxes_xywh: npt.NDArray[np.float64]  # (n, 4) whole pixels
    margins: npt.NDArray[np.float64]  # (n,) of the group's best window


def best_windows(windows_xywh: Boxes, margins: npt.NDArray[np.float64]) -> Groups:
    """Return the windows that overlap no better one by half of the smaller's area, best first."""
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


def group_windows(windows_xywh: Boxes, margins: npt.NDArray[np.float64], *, min_neighbours: int) -> Groups:
    """Return the groups of more than `min_neighbours` similar windows, as OpenCV's HOGDescriptor does.

    Windows are similar if all four edges lie within 0.2 of their mean side; a group is whatever similarity
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
    outer = ~_lies_in_a_larger(boxes, counts)
    return Groups(np.rint(boxes[outer]), best[outer])


def _connected(windows: Boxes) -> npt.NDArray[np.int64]:
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


def _lies_in_a_larger(boxes: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which boxes lie within another one, give or take 0.2 of its sides, of clearly more windows."""
    near, far = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    slack = np.rint(boxes[:, 2:] * SIMILARITY)
    inside = (near[:, None] >= near - slack).all(axis=2) & (far[:, None] <= far + slack).all(axis=2)
    outweighed = (counts > np.maximum(3, counts[:, None])) | (counts[:, None] < 3)
    another = ~np.eye(len(boxes), dtype=np.bool_)
    return np.asarray((inside & outweighed & another).any(axis=1))
