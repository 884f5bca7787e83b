"""What a network takes according to its file, and how pictures become the numbers that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from app.errors import ModelFault

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PICTURE_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


class Channels(StrEnum):
    """The order of a picture's colours."""

    RGB = "rgb"
    BGR = "bgr"


class FurtherInput(StrEnum):
    """What a network takes beside the pictures."""

    SIZES = "sizes"  # (n, 2): the width and height to which its boxes are scaled
    MASK = "mask"  # (n, height, width): 1 where a picture is, 0 where it was padded


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input of a network as its file describes it."""

    name: str
    shape: Sequence[object]  # only integers are fixed
    dtype: torch.dtype | None  # None: of a type that torch does not have


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """What a network takes. None: it takes any, or its file does not say."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False  # (n, height, width, 3)
    has_batch: bool = True  # else it takes one picture, (3, height, width)
    name: str = ""
    further: tuple[tuple[FurtherInput, torch.dtype], ...] = ()  # in the network's order

    def further_tensors(self, pictures: Tensor) -> list[Tensor]:
        """Return what the network takes beside `pictures`, as `to_network_input` returns them.

        The picture is said to be one wide and one high, so that boxes come out as fractions of its sides,
        whichever of the two the network has first.
        """
        height, width = pictures.shape[1:3] if self.channels_last else pictures.shape[-2:]
        shapes = {FurtherInput.SIZES: (len(pictures), 2), FurtherInput.MASK: (len(pictures), height, width)}
        return [torch.ones(shapes[kind], dtype=dtype, device=pictures.device) for kind, dtype in self.further]


def picture_input(name: str, inputs: Sequence[InputTensor]) -> NetworkInput:
    """Return what network `name` takes, the pictures first.

    Raises ModelFault, describing the inputs, for what does not take one batch of colour pictures.
    """
    takes: NetworkInput | None = None
    further: list[tuple[FurtherInput, torch.dtype]] = []
    seen = []
    for place, tensor in enumerate(inputs):
        sides = [side if isinstance(side, int) else None for side in tensor.shape]
        described = ", ".join("any" if side is None else str(side) for side in sides)
        seen.append(f"({described}) {tensor.dtype or 'of an unknown type'}")
        if place == 0 and tensor.dtype in PICTURE_TYPES and len(sides) in (3, 4):
            batch, first, second, third = sides if len(sides) == 4 else [1, *sides]
            has_batch = len(sides) == 4
            if first == 3 or (first is None and third != 3):
                takes = NetworkInput(batch, second, third, tensor.dtype, False, has_batch, tensor.name)
            elif third == 3:
                takes = NetworkInput(batch, first, second, tensor.dtype, True, has_batch, tensor.name)
        elif place and tensor.dtype is not None and len(sides) == 2 and sides[1] == 2:
            further.append((FurtherInput.SIZES, tensor.dtype))
        elif place and tensor.dtype is not None and len(sides) == 3 and "mask" in tensor.name:
            further.append((FurtherInput.MASK, tensor.dtype))
    if takes is None or len(further) != len(inputs) - 1:
        raise ModelFault(
            f"Model {name!r} takes {' and '.join(seen) or 'nothing'}; what is served takes (n, 3, height, "
            "width) or (n, height, width, 3), float32, float16 or uint8."
        )
    return replace(takes, further=tuple(further))


@dataclass(frozen=True, slots=True)
class PixelRules:
    """How a picture's numbers are made from RGB in [0, 1]."""

    white: float = 1.0  # what a white pixel is before mean and std: 1 or 255
    mean: tuple[float, float, float] | None = None  # of each colour, subtracted
    std: tuple[float, float, float] | None = None  # of each colour, divided by
    channels: Channels = Channels.RGB


def processor_pixels(settings: Mapping[str, Any], *, normalizes: bool = True) -> PixelRules:
    """Return the rules of an image processor of Hugging Face. A setting of null counts as left out.

    `settings`: the object of ``preprocessor_config.json``; `normalizes`: whether it does if they do not say.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    white = 255.0
    if given.get("do_rescale", True):
        white *= given.get("rescale_factor", 1 / 255)
    if not given.get("do_normalize", normalizes):
        return PixelRules(white)
    mean, std = given.get("image_mean", IMAGENET_MEAN), given.get("image_std", IMAGENET_STD)
    return PixelRules(white, tuple(mean), tuple(std))


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
