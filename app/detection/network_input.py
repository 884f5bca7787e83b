"""What a network takes according to its file, and how pictures become the numbers that it takes."""

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
    """The one input of a network. None: it takes any, or its file does not say."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False  # (n, height, width, 3)


def picture_input(name: str, inputs: Sequence[tuple[Sequence[object], torch.dtype | None]]) -> NetworkInput:
    """Return the one input of network `name`. `inputs`: shapes, in which only integers are fixed, and types.

    Raises ModelFault, describing the inputs, for what does not take one batch of colour pictures.
    """
    seen = []
    for shape, dtype in inputs:
        sides = [side if isinstance(side, int) else None for side in shape]
        if len(inputs) == 1 and len(sides) == 4 and dtype in PICTURE_TYPES:
            batch, *picture = sides
            if picture[0] == 3:
                return NetworkInput(batch, picture[1], picture[2], dtype)
            if picture[2] == 3:
                return NetworkInput(batch, picture[0], picture[1], dtype, channels_last=True)
        described = ", ".join("any" if side is None else str(side) for side in sides)
        seen.append(f"({described}) {dtype or 'of an unknown type'}")
    raise ModelFault(
        f"Model {name!r} takes {' and '.join(seen) or 'nothing'}; what is served takes (n, 3, height, "
        "width) or (n, height, width, 3), float32, float16 or uint8."
    )


@dataclass(frozen=True, slots=True)
class PixelRules:
    """How a picture's numbers are made from RGB in [0, 1]."""

    white: float = 1.0  # what a white pixel is before mean and std: 1 or 255
    mean: tuple[float, float, float] | None = None  # of each colour, subtracted
    std: tuple[float, float, float] | None = None  # of each colour, divided by
    channels: Channels = Channels.RGB


def to_network_input(pictures: Tensor, takes: NetworkInput, rules: PixelRules) -> Tensor:
    """Return (n, 3, height, width) float32 RGB in [0, 1] as the network takes it. May reuse `pictures`."""
    if rules.channels is Channels.BGR:
        pictures = pictures.flip(1)
    if takes.dtype is torch.uint8:
        pictures = (pictures * 255).round_().to(torch.uint8)
    else:
        if rules.white != 1:
            pictures *= rules.white
        if rules.mean is not None:
            pictures -= pictures.new_tensor(rules.mean)[:, None, None]
        if rules.std is not None:
            pictures /= pictures.new_tensor(rules.std)[:, None, None]
        pictures = pictures.to(takes.dtype)
    return pictures.permute(0, 2, 3, 1) if takes.channels_last else pictures
