"""Operators of torchvision that scripts use: its own, or its suppression without it."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import torch
from torch import Tensor
from torch import library as operators

_lock = threading.Lock()
_libraries: list[operators.Library] = []  # an operator is there as long as its library


def provide_operators() -> None:
    """Make operators of torchvision known to torch: all if it is installed for this torch, else ``nms``.

    Only its compiled library is loaded: 2 MiB, where importing torchvision takes 85 MiB and seconds.
    """
    with _lock:
        if hasattr(torch.ops.torchvision, "nms"):
            return
        found = importlib.util.find_spec("torchvision")
        for folder in (found and found.submodule_search_locations) or ():
            for library in Path(folder).glob("_C*.so"):
                try:
                    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                except OSError:  # built for another torch
                    continue
                return
        own = operators.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        own.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        own.impl("nms", nms, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        _libraries.append(own)


def nms(boxes_xyxy: Tensor, scores: Tensor, max_overlap: float) -> Tensor:
    """Return the places, (m,) int64, best first, of the boxes that do not repeat a better one.

    `boxes_xyxy`: (k, 4); `scores`: (k,); `max_overlap`: the largest intersection over union of two that stay.
    """
    order = scores.float().cpu().argsort(descending=True, stable=True)
    boxes = boxes_xyxy.float().cpu()[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for place in range(len(boxes)):
        if not stays[place]:
            continue
        kept.append(place)
        box, rest = boxes[place], boxes[place + 1 :]
        shared = (torch.minimum(box[2:], rest[:, 2:]) - torch.maximum(box[:2], rest[:, :2])).clamp(min=0)
        intersection = shared[:, 0] * shared[:, 1]
        union = areas[place] + areas[place + 1 :] - intersection
        stays[place + 1 :] &= ~(intersection / union > max_overlap)
    return order[torch.tensor(kept, dtype=torch.int64)].to(boxes_xyxy.device)
