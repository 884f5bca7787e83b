"""How a frame is resized for a model, and how its boxes are mapped back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Floats = npt.NDArray[np.float32]

FILL = 114 / 255  # the grey around a letterboxed picture that YOLO networks are trained with

# A frame with a longer side is scaled to it while it is decoded, even if the source's own pixels are wanted:
# two batches of larger ones would not fit into a decoder's ring.
LONGEST_SOURCE_SIDE = 1920


class ResizePolicy(StrEnum):
    """How a picture of another shape fills a network's input."""

    LETTERBOX = "letterbox"  # keeps its aspect ratio; grey on the right or at the bottom
    LETTERBOX_CENTRE = "letterbox-centre"  # keeps its aspect ratio; grey on both sides
    STRETCH = "stretch"  # loses its aspect ratio
    STRETCH_SHARP = "stretch-sharp"  # likewise, but scaled from the source's own pixels, without smoothing
    AS_IS = "as-is"  # the input has the frame's size, or a smaller one within the declared, either way round
    SHORT_SIDE = "short-side"  # keeps it, and the input has it too, within the declared size either way round


def fit_within(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return the largest (width, height) of that aspect ratio with no side over `max_side`; never enlarged.

    Rounded to whole pixels, at least 1 × 1: a very long frame loses its aspect ratio rather than its width.
    """
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def scaled_smoothly(planes: Tensor, size: tuple[int, int], kernel: str = "bilinear") -> Tensor:
    """Scale (n, 3, h, w) uint8 to `size`, (height, width), without aliasing and in whole numbers.

    `kernel`: bilinear or bicubic. On a CPU the result is uint8, on a GPU float32; Pillow's is the same.
    """
    if planes.device.type == "cpu":
        return functional.interpolate(planes, size, mode=kernel, antialias=True)
    scaled = functional.interpolate(planes.float(), size, mode=kernel, antialias=True)  # CUDA takes no bytes
    return scaled.round_().clamp_(0, 255)


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
    """How frames become a network's input, and how boxes are mapped back."""

    @abstractmethod
    def place(self, width: int, height: int) -> Placement:
        """Return where a `width` × `height` frame is placed."""

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the best size for the frames of a video: as they are placed, but never enlarged."""
        placement = self.place(width, height)
        return min(width, placement.width), min(height, placement.height)

    def fill(self, frames: Tensor, device: str, *, channels_last: bool = True) -> Tensor:
        """Return the network's input on `device`: (n, 3, height, width) float32 RGB in [0, 1].

        `frames`: (n, h, w, 3) uint8 RGB. If they do not have the placed size, they are scaled bilinearly, in
        whole numbers, as in training. `channels_last`: whether a pixel's colours are together in memory.
        """
        n, height, width, _ = frames.shape
        placement = self.place(width, height)
        canvas = torch.empty(
            (n, 3, placement.input_height, placement.input_width),
            device=device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        left, top = placement.left, placement.top
        right, bottom = left + placement.width, top + placement.height
        middle = canvas[:, :, top:bottom]
        for grey in (canvas[:, :, :top], canvas[:, :, bottom:], middle[..., :left], middle[..., right:]):
            grey.fill_(FILL)
        planes = frames.to(device).permute(0, 3, 1, 2)
        if (width, height) != (placement.width, placement.height):
            planes = scaled_smoothly(planes, (placement.height, placement.width))
        torch.div(planes, 255, out=middle[..., left:right])
        return canvas

    def boxes_to_frame(self, boxes_xyxy: Floats, width: int, height: int) -> Floats:
        """Turn boxes, (…, 4) in pixels of the input, into pixels of the `width` × `height` frame, clamped."""
        placement = self.place(width, height)
        corner, scale, limits = np.array(
            [
                [placement.left, placement.top] * 2,
                [width / placement.width, height / placement.height] * 2,
                [width, height] * 2,
            ],
            np.float32,
        )
        boxes: Floats = np.minimum(np.maximum((boxes_xyxy - corner) * scale, 0), limits)
        return boxes


@dataclass(frozen=True, slots=True)
class InputSize(Fitting):
    """An input of a fixed size, and how frames fill it."""

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
class AsIs(Fitting):
    """An input of the frame's own size, for networks that scale by themselves; at most as declared."""

    short: int  # the most of the shorter side
    longest: int

    def place(self, width: int, height: int) -> Placement:
        scale = min(1.0, self.short / min(width, height), self.longest / max(width, height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        return Placement(0, 0, width, height, width, height)


@dataclass(frozen=True, slots=True)
class ShortSide(Fitting):
    """An input with the frame's aspect ratio: its shorter side is `short`, or less if the longer is long."""

    short: int
    longest: int
    multiple: int = 1  # both sides are rounded down to a multiple of this

    def place(self, width: int, height: int) -> Placement:
        smaller, larger = min(width, height), max(width, height)
        is_whole = width % self.multiple == height % self.multiple == 0
        is_inside = smaller <= self.short and larger <= self.longest
        is_large = smaller > self.short - self.multiple or larger > self.longest - self.multiple - 1
        # A frame that was scaled before stays as it is: rounding must not change it a second time.
        if not (is_whole and is_inside and is_large):
            wanted: float = self.short
            if larger / smaller * self.short > self.longest:
                wanted = self.longest * smaller / larger
            short, long = round(wanted), int(wanted * larger / smaller)
            sides = (short, long) if width < height else (long, short)
            width, height = (
                max(self.multiple, min(side, self.longest) // self.multiple * self.multiple) for side in sides
            )
        return Placement(0, 0, width, height, width, height)


@dataclass(frozen=True, slots=True)
class FromSource(Fitting):
    """An input that holds the whole frame and nothing else, scaled here, from the source's own pixels.

    For networks whose boxes must be those of another program: with frames that the decoder has scaled, with
    another filter and less colour, an RT-DETR of random weights found 496 of 663 boxes; from the source all.
    """

    size_of: Callable[[int, int], tuple[int, int]]  # (width, height) of a frame to those of the input
    kernel: str = "bilinear"  # or bicubic
    antialias: bool = True

    def place(self, width: int, height: int) -> Placement:
        width, height = self.size_of(width, height)
        return Placement(0, 0, width, height, width, height)

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return fit_within(width, height, LONGEST_SOURCE_SIDE)

    def fill(self, frames: Tensor, device: str, *, channels_last: bool = True) -> Tensor:  # noqa: ARG002
        _, height, width, _ = frames.shape
        placement = self.place(width, height)
        size = (placement.height, placement.width)
        planes = frames.to(device).permute(0, 3, 1, 2)
        if size == (height, width):
            return planes / 255
        if self.antialias:
            return scaled_smoothly(planes, size, self.kernel) / 255
        return functional.interpolate(planes / 255, size, mode=self.kernel)
