"""How a frame is brought to the size that a model wants, and its boxes back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

FILL = 114 / 255  # the grey around a letterboxed picture that YOLO networks are trained with


class ResizePolicy(StrEnum):
    """How a picture of another shape fills a network's input."""

    LETTERBOX = "letterbox"  # keeps its shape; grey on the right or at the bottom
    LETTERBOX_CENTRE = "letterbox-centre"  # keeps its shape; grey on both sides
    STRETCH = "stretch"  # loses its shape


def fit_within(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return the largest (width, height) of that shape with no side over `max_side`; never enlarged.

    Rounded to whole pixels, at least 1 × 1: a very long frame loses its shape rather than its width.
    """
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a frame lies in a network's input, in whole pixels of the input."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class InputSize:
    """The size of a network's input, and how frames fill it."""

    width: int
    height: int
    policy: ResizePolicy

    def place(self, width: int, height: int) -> Placement:
        """Return where a `width` × `height` frame comes to lie."""
        if self.policy is ResizePolicy.STRETCH:
            return Placement(0, 0, self.width, self.height)
        scale = min(self.width / width, self.height / height)
        scaled_width, scaled_height = max(1, round(width * scale)), max(1, round(height * scale))
        if self.policy is ResizePolicy.LETTERBOX:
            return Placement(0, 0, scaled_width, scaled_height)
        left, top = (self.width - scaled_width) // 2, (self.height - scaled_height) // 2
        return Placement(left, top, scaled_width, scaled_height)

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size at which frames are best given: as they are placed, but never enlarged."""
        placement = self.place(width, height)
        return min(width, placement.width), min(height, placement.height)

    def fill(self, frames: Tensor, device: str) -> Tensor:
        """Return the network's input on `device`: (n, 3, height, width) float32 RGB in [0, 1], channels last.

        `frames`: (n, h, w, 3) uint8 RGB, of any size. What is not of the placed size is scaled bilinearly.
        """
        n, height, width, _ = frames.shape
        placement = self.place(width, height)
        canvas = torch.full((n, self.height, self.width, 3), FILL, device=device)
        bottom, right = placement.top + placement.height, placement.left + placement.width
        region = canvas[:, placement.top : bottom, placement.left : right]
        pictures = frames.to(device)
        if (width, height) != (placement.width, placement.height):
            pictures = _scaled(pictures, placement)
        region.copy_(pictures)
        region /= 255
        return canvas.permute(0, 3, 1, 2)

    def boxes_to_frame(self, boxes_xyxy: Tensor, width: int, height: int) -> Tensor:
        """Turn boxes, (…, 4) in pixels of the input, into pixels of the `width` × `height` frame, clamped."""
        placement = self.place(width, height)
        corner = boxes_xyxy.new_tensor([placement.left, placement.top] * 2)
        scale = boxes_xyxy.new_tensor([width / placement.width, height / placement.height] * 2)
        limits = boxes_xyxy.new_tensor([width, height] * 2)
        return torch.minimum(((boxes_xyxy - corner) * scale).clamp(min=0), limits)


def _scaled(pictures: Tensor, placement: Placement) -> Tensor:
    """Scale (n, h, w, 3) uint8 to the placed size; float32, still in [0, 255]."""
    planes = pictures.permute(0, 3, 1, 2).float()
    size = (placement.height, placement.width)
    return functional.interpolate(planes, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
