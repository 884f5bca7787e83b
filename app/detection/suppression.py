"""Of boxes of one class that overlap, the best stays: class-wise non-maximum suppression, batched."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(boxes_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of every two boxes: (n, k, 4) to (n, k, k)."""
    near, far = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    sizes = (far - near).clamp(min=0)
    areas = sizes[..., 0] * sizes[..., 1]
    shared = torch.minimum(far[:, :, None], far[:, None]) - torch.maximum(near[:, :, None], near[:, None])
    shared.clamp_(min=0)
    intersection = shared[..., 0] * shared[..., 1]
    union = areas[:, :, None] + areas[:, None] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def suppress(boxes_xyxy: Tensor, class_ids: Tensor, valid: Tensor, max_overlap: float) -> Tensor:
    """Return which boxes stay, (n, k) bool: those that overlap no better one of their class that stays.

    `boxes_xyxy`: (n, k, 4), each row best first; `class_ids`, `valid`: (n, k). Boxes that are not valid do
    not stay. Takes about 30 bytes for each of the n · k² pairs.

    The greedy algorithm without its loop over boxes. "It stays if no better one that stays suppresses it"
    has one solution, fixed from the first box on; repeating it from any guess, the first i boxes are right
    after i rounds, and in practice all are after a handful.
    """
    suppresses = overlaps(boxes_xyxy) > max_overlap
    suppresses &= class_ids[:, :, None] == class_ids[:, None]
    suppresses = suppresses.triu(diagonal=1)  # the better one comes first
    stays = valid
    for _ in range(valid.shape[1] + 1):
        then = valid & ~(suppresses & stays[:, :, None]).any(dim=1)
        if torch.equal(then, stays):
            break
        stays = then
    return stays
