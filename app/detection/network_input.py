"""What a network takes, as its file tells, and the numbers in which pictures are handed to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from app.errors import ModelFault

PICTURE_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


class Channels(StrEnum):
    """The order of a picture's colours."""

    RGB = "rgb"
    BGR = "bgr"


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """The one input of a network; None where it takes any, or where its file does not tell."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False  # (n, height, width, 3)

    @property
    def size(self) -> tuple[int, int] | None:
        """The only (width, height) that it takes."""
        if self.width is None or self.height is None:
            return None
        return self.width, self.height


def picture_input(name: str, shape: Sequence[object], dtype: torch.dtype | None) -> NetworkInput:
    """Return what a network takes whose input has that `shape`, where only numbers are fixed.

    Raises ModelFault, saying what was seen, for what cannot be a batch of colour pictures.
    """
    sides = [side if isinstance(side, int) else None for side in shape]
    if len(sides) == 4 and dtype in PICTURE_TYPES:
        batch, *picture = sides
        if picture[0] == 3:
            return NetworkInput(batch, picture[1], picture[2], dtype)
        if picture[2] == 3:
            return NetworkInput(batch, picture[0], picture[1], dtype, channels_last=True)
    seen = ", ".join("any" if side is None else str(side) for side in sides)
    raise ModelFault(
        f"Model {name!r} takes ({seen}) {dtype or 'of a type unknown here'}; what is served takes "
        "(n, 3, height, width) or (n, height, width, 3), float32, float16 or uint8."
    )


@dataclass(frozen=True, slots=True)
class PixelRules:
    """How a picture's numbers are made from RGB in [0, 1]."""

    white: float = 1.0  # what a white pixel is before mean and std: 1 or 255
    mean: tuple[float, float, float] | None = None  # a colour each, taken off
    std: tuple[float, float, float] | None = None  # a colour each, divided by
    channels: Channels = Channels.RGB

    @property
    def are_plain(self) -> bool:
        return self.white == 1 and self.mean is None and self.std is None


def hand_over(pictures: Tensor, takes: NetworkInput, rules: PixelRules) -> Tensor:
    """Return (n, 3, height, width) float32 RGB in [0, 1] as the network takes it. May reuse `pictures`."""
    if rules.channels is Channels.BGR:
        pictures = pictures.flip(1)
    if takes.dtype is torch.uint8:
        pictures = (pictures * 255).round_().to(torch.uint8)
    else:
        pictures = _normalised(pictures, rules).to(takes.dtype)
    return pictures.permute(0, 2, 3, 1) if takes.channels_last else pictures


def _normalised(pictures: Tensor, rules: PixelRules) -> Tensor:
    if rules.white != 1:
        pictures *= rules.white
    if rules.mean is not None:
        pictures -= pictures.new_tensor(rules.mean)[:, None, None]
    if rules.std is not None:
        pictures /= pictures.new_tensor(rules.std)[:, None, None]
    return pictures
