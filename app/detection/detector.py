"""What a model must provide to be served: the Detector protocol and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class DeviceOutOfMemory(Exception):
    """A batch did not fit on the device; a smaller one may."""


class DeviceLost(Exception):
    """The device is unusable until the process restarts; work that was running can be repeated."""


SIGNS_OF_LACK_OF_MEMORY = (
    "DefaultCPUAllocator",  # torch
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",  # CUDA's libraries
    "Failed to allocate memory",  # onnxruntime
    "could not create a primitive",  # oneDNN, which does not say why: seen when memory was short
    "bad_alloc",
    "bad allocation",
    "Cannot allocate memory",  # the system, as passed on by Rust libraries
    "can't start new thread",  # there is no room for its stack
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a model's call failed for lack of memory, so that a smaller batch may fit."""
    if isinstance(error, DeviceOutOfMemory | MemoryError | torch.OutOfMemoryError):
        return True
    # Other libraries have no class of their own for it.
    return any(sign in str(error) for sign in SIGNS_OF_LACK_OF_MEMORY)


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether a lack of memory caused `error`: formats report any failure as a broken file."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__
    return False


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The n boxes of one frame, best score first, on the CPU."""

    boxes_xyxy: Tensor  # (n, 4) float32, pixels of the frame as given: left, top, right, bottom
    scores: Tensor  # (n,) float32 in [0, 1]
    class_ids: Tensor  # (n,) int64, indices into Detector.class_names

    @classmethod
    def empty(cls) -> Detections:
        """Return the detections of a frame with nothing in it: n = 0, with the usual shapes and dtypes."""
        return cls(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def detections_of(
    boxes_xyxy: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> list[Detections]:
    """Return the detections of each frame of a batch, which share memory with what is given.

    The boxes, scores and class ids are those of all frames, one frame after another. `starts`: where each of
    the n frames begins, and where the last one ends, (n + 1,).
    """
    return [
        Detections(*(torch.from_numpy(column[start:end]) for column in (boxes_xyxy, scores, class_ids)))
        for start, end in pairwise(starts.tolist())
    ]


class Detector(Protocol):
    """A model that finds objects. Stateless between calls; one thread per device owns it."""

    @property
    def name(self) -> str:
        """The model's name in ``model=`` and ``/v1/models``."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that decides the boxes: weights, parameters, the code's revision."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def default_min_score(self) -> float:
        """The score below which boxes are dropped if the request has no ``min_score``."""

    @property
    def batch_size(self) -> int:
        """How many frames `detect` takes at a time, at most. Fixed while the process lives."""

    @property
    def device(self) -> str:
        """The torch device that holds the model: ``cpu``, ``cuda:0``."""

    @property
    def precision(self) -> str:
        """The type in which it computes, as torch names it: ``float32``, ``float16``."""

    @property
    def takes_device_frames(self) -> bool:
        """Whether `detect` also takes frames on `device`, so that they can be copied there in advance."""

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that it wants for the frames of a `width` × `height` video.

        Frames are scaled while they are decoded; the caller maps boxes back. Never larger than the source: a
        detector that needs more enlarges them itself.
        """

    def detect(self, frames: Tensor) -> list[Detections]:
        """Return one Detections per frame of `frames`, (n, height, width, 3) uint8 RGB, in order.

        `frames` lies in host memory, or on `device` if `takes_device_frames`; 1 ≤ n ≤ batch_size, all of
        one size; it is valid only during the call. Equal frames in equal batches give equal boxes.
        Raises DeviceOutOfMemory if this batch does not fit; a smaller one may.
        """
