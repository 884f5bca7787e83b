"""What a model has to be, to be served: the Detector protocol and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class DeviceOutOfMemory(Exception):
    """A batch did not fit on the device; a smaller one may."""


class DeviceLost(Exception):
    """The device is unusable until the process starts anew; what was running may be done again."""


_SIGNS_OF_LACK_OF_MEMORY = (
    "DefaultCPUAllocator",  # torch
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",  # CUDA's libraries
    "Failed to allocate memory",  # onnxruntime
    "could not create a primitive",  # oneDNN, which does not say why: seen where memory was short
    "bad_alloc",
    "bad allocation",
    "Cannot allocate memory",  # the system, as Rust's libraries pass it on
    "can't start new thread",  # whose stack finds no room
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a model's call failed for lack of memory, so that a smaller batch may fit."""
    if isinstance(error, DeviceOutOfMemory | MemoryError | torch.OutOfMemoryError):
        return True
    # Other lacks of memory have no class of their own.
    return any(sign in str(error) for sign in _SIGNS_OF_LACK_OF_MEMORY)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What one frame holds: n boxes, best score first, on the CPU."""

    boxes_xyxy: Tensor  # (n, 4) float32, pixels of the frame as given: left, top, right, bottom
    scores: Tensor  # (n,) float32 in [0, 1]
    class_ids: Tensor  # (n,) int64, indices into Detector.class_names

    @classmethod
    def empty(cls) -> Detections:
        """What a frame with nothing in it holds: n = 0, shapes and dtypes as ever."""
        return cls(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


class Detector(Protocol):
    """A model that finds objects. Stateless between calls; one owner thread a device."""

    @property
    def name(self) -> str:
        """The model's name in ``model=`` and ``/v1/models``."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides the boxes: weights, parameters, the code's revision."""
        ...

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def default_min_score(self) -> float:
        """The score below which boxes are dropped when the caller names no ``min_score``."""
        ...

    @property
    def batch_size(self) -> int:
        """How many frames `detect` takes at a time, at most. Fixed while the process lives."""
        ...

    @property
    def device(self) -> str:
        """The torch device that holds the model: ``cpu``, ``cuda:0``."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in, as torch names it: ``float32``, ``float16``."""
        ...

    @property
    def takes_device_frames(self) -> bool:
        """Whether `detect` takes frames that lie on `device` too, so that they can be copied ahead."""
        ...

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) at which it wants the frames of a `width` × `height` video.

        Frames are scaled while they are decoded; boxes are mapped back by the caller.
        Never larger than the source: a detector that wants more scales up by itself.
        """
        ...

    def detect(self, frames: Tensor) -> list[Detections]:
        """Return one Detections per frame of `frames`, (n, height, width, 3) uint8 RGB, in order.

        `frames` lies in host memory, or on `device` if `takes_device_frames`; 1 ≤ n ≤ batch_size, all of
        one size; it is only valid during the call. Equal frames in equal batches give equal boxes.
        Raises DeviceOutOfMemory if this batch does not fit; a smaller one may.
        """
        ...
