"""The numbers of a network: float32, or 16 bits, which are faster on a GPU and give slightly other boxes."""

from __future__ import annotations

from enum import StrEnum

import torch


class Precision(StrEnum):
    """A number's format, as torch names it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"  # 11 bits of a number, up to 65504
    BFLOAT16 = "bfloat16"  # 8 bits of a number, as far as float32


def choose_precision(device: str, *, declared: Precision | None, setting: Precision) -> Precision:
    """Return the declared precision of a model on `device`, or else, on CUDA, the setting.

    On a CPU 16 bits seldom pay, so that one setting may serve machines with and without a GPU.
    """
    if declared is not None:
        return declared
    return setting if torch.device(device).type == "cuda" else Precision.FLOAT32
