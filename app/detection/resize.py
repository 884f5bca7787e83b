"""How a frame is brought to the size that a model wants, and its boxes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    input_width: int
    input_height: int


class Fitting(ABC):
    """How frames become a network's input, and boxes come back."""

    @abstractmethod
    def place(self, width: int, height: int) -> Placement:
        """Return where a `width` × `height` frame comes to lie."""

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
        canvas = torch.full((n, placement.input_height, placement.input_width, 3), FILL, device=device)
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


@dataclass(frozen=True, slots=True)
class InputSize(Fitting):
    """An input of one size, and how frames fill it."""

    width: int
    height: int
    policy: ResizePolicy

    def place(self, width: int, height: int) -> Placement:
        if self.policy is ResizePolicy.STRETCH:
            return Placement(0, 0, self.width, self.height, self.width, self.height)
        scale = min(self.width / width, self.height / height)
        scaled_width, scaled_height = max(1, round(width * scale)), max(1, round(height * scale))
        left = top = 0
        if self.policy is ResizePolicy.LETTERBOX_CENTRE:
            left, top = (self.width - scaled_width) // 2, (self.height - scaled_height) // 2
        return Placement(left, top, scaled_width, scaled_height, self.width, self.height)


@dataclass(frozen=True, slots=True)
class ShortSide(Fitting):
    """An input of its frame's shape: the shorter side has one length, unless the longer gets too long."""

    short: int
    longest: int
    multiple: int = 1  # of which both sides are cut down to be

    def place(self, width: int, height: int) -> Placement:
        if not self._is_scaled(width, height):
            width, height = self._scaled_size(width, height)
        return Placement(0, 0, width, height, width, height)

    def _is_scaled(self, width: int, height: int) -> bool:
        """Whether a frame has come out of `_scaled_size`: rounding must not move it another time."""
        smaller, larger = min(width, height), max(width, height)
        is_whole = width % self.multiple == height % self.multiple == 0
        is_inside = smaller <= self.short and larger <= self.longest
        is_large = smaller > self.short - self.multiple or larger > self.longest - self.multiple - 1
        return is_whole and is_inside and is_large

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        smaller, larger = min(width, height), max(width, height)
        wanted: float = self.short
        if larger / smaller * self.short > self.longest:
            wanted = self.longest * smaller / larger
        short, long = round(wanted), int(wanted * larger / smaller)
        sides = (short, long) if width < height else (long, short)
        cut_width, cut_height = (
            max(self.multiple, min(side, self.longest) // self.multiple * self.multiple) for side in sides
        )
        return cut_width, cut_height


def _scaled(pictures: Tensor, placement: Placement) -> Tensor:
    """Scale (n, h, w, 3) uint8 to the placed size, in whole numbers: so networks were trained."""
    planes = pictures.permute(0, 3, 1, 2)
    size = (placement.height, placement.width)
    if pictures.device.type != "cpu":  # CUDA knows floats alone here
        planes = functional.interpolate(planes.float(), size, mode="bilinear", antialias=True).round_()
    else:
        planes = functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1)
