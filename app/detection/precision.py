"""What a network computes in: float32, or 16 bits, with which a GPU is faster and boxes slightly other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from app.detection.network_input import NetworkInput


class Precision(StrEnum):
    """A number's format, as torch names it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"  # 11 bits of a number, up to 65504
    BFLOAT16 = "bfloat16"  # 8 bits of a number, as far as float32

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


def choose_precision(device: str, *, declared: Precision | None, setting: Precision) -> Precision:
    """Return what a model on `device` computes in: what is declared of it, or else, on CUDA, the setting.

    On a CPU 16 bits seldom pay, so that one setting may serve machines with and without a GPU.
    """
    if declared is not None:
        return declared
    return setting if torch.device(device).type == "cuda" else Precision.FLOAT32


class Runs(Protocol):
    """A network; see `network.Network`."""

    @property
    def takes(self) -> NetworkInput: ...

    @property
    def is_stateless(self) -> bool: ...

    def run(self, pictures: Tensor) -> object: ...


@dataclass(frozen=True, slots=True)
class AutocastNetwork:
    """A network of torch in 16 bits: its convolutions and products of matrices, as torch thinks fit.

    Its weights, its input and the reading of its output stay as they are. Fulfils Network.
    """

    network: Runs
    device: torch.device
    precision: Precision

    @property
    def takes(self) -> NetworkInput:
        return self.network.takes

    @property
    def is_stateless(self) -> bool:
        return self.network.is_stateless

    def run(self, pictures: Tensor) -> object:
        # Without the cache weights are halved layer by layer, and not all at a time: it saves their memory.
        with torch.autocast(self.device.type, self.precision.dtype, cache_enabled=False):
            return self.network.run(pictures)
