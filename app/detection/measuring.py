"""What a model costs and how many frames it likes at a time: measured once a model and device, then kept."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from app.detection.detector import Detections, Detector, is_out_of_memory
from app.detection.network import NetworkDetector
from app.detection.precision_effect import measure_effect
from app.memory import forget_peak, give_back_free_memory, memory_use

REVISION = 2  # of ModelProfile; raised when what was kept before tells less, or something else
TYPICAL_VIDEO = (1280, 720)
ROUNDS = 3  # the fastest counts: other work on the machine only ever slows a round down
MEASURE_SECONDS = 3.0  # no larger batch is begun after so long
GOOD_ENOUGH = 0.95  # of the best speed: the smallest batch that reaches it takes the least memory
HOPELESS = 0.8  # of the best speed: where larger batches are that slow, still larger ones are not tried


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """What a model takes."""

    host_bytes: int  # while it runs
    device_bytes: int = 0
    loading_bytes: int = 0  # of the host while it loads: its file too, and what of it goes to a device

    @property
    def peak_host_bytes(self) -> int:
        return max(self.host_bytes, self.loading_bytes)


class ModelProfile(TypedDict):
    """What was measured of a model on a device. Plain JSON values, so that it can be kept."""

    batch_size: int
    frames_per_second: float  # of 1280 × 720 video, decoding apart
    host_bytes: int  # host memory with a batch of that size
    loading_bytes: int  # host memory at its peak while it loads
    device_bytes: int  # memory of the device, if that has its own
    precision_effect: NotRequired[dict[str, float]]  # PrecisionEffect, of a network that was given 16 bits


class MemoryMeter:
    """What this process and a device take beyond what they took when the meter was made, at the peak.

    What other threads allocate meanwhile is counted in.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        drop_unused()
        self._resident = memory_use().resident
        self._free_on_device = _free_on_device(device)
        forget_peak()

    def begin(self) -> None:
        """Give back what lies free, and begin a new peak."""
        drop_unused()
        forget_peak()

    def cost(self) -> MemoryCost:
        """The peak since the last `begin`. A device's memory is kept by its allocator, so now is its peak."""
        return MemoryCost(
            host_bytes=max(0, memory_use().peak_resident - self._resident),
            device_bytes=max(0, self._free_on_device - _free_on_device(self._device)),
        )


def drop_unused() -> None:
    """Give back what models that are gone have left behind: to the system, and to the device."""
    gc.collect()
    give_back_free_memory()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _free_on_device(device: str) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else 0


@dataclass(frozen=True, slots=True)
class Trial:
    """A batch size that was tried."""

    batch_size: int
    frames_per_second: float
    cost: MemoryCost


def measure(detector: Detector, meter: MemoryMeter) -> ModelProfile:
    """Find the batch that `detector` is fastest with, what it costs then, and what 16 bits do to its boxes.

    `meter` was made before the detector was loaded. Tries powers of two up to the detector's own batch size.
    Raises whatever the model raises for one frame.
    """
    loading = meter.cost()
    trials = _trials(detector, meter)
    chosen = best_trial(trials)
    profile: ModelProfile = {
        "batch_size": chosen.batch_size,
        "frames_per_second": round(chosen.frames_per_second, 1),
        "host_bytes": chosen.cost.host_bytes,
        "loading_bytes": loading.host_bytes,
        "device_bytes": max(loading.device_bytes, chosen.cost.device_bytes),
    }
    if isinstance(detector, NetworkDetector) and detector.reference is not None:
        profile["precision_effect"] = measure_effect(detector, detector.reference).model_dump()
    return profile


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the smallest batch of `trials`, smallest first, that is about as fast as the fastest."""
    best = max(trial.frames_per_second for trial in trials)
    return next(trial for trial in trials if trial.frames_per_second >= GOOD_ENOUGH * best)


def _trials(detector: Detector, meter: MemoryMeter) -> list[Trial]:
    trials: list[Trial] = []
    started = time.monotonic()
    for size in _sizes(detector.batch_size):
        try:
            trials.append(_try(detector, size, meter))
        except Exception as error:
            if not trials or isinstance(error, torch.AcceleratorError):
                raise
            if not is_out_of_memory(error):  # a network may be exported for so many and no more
                _log.warning("model fails on a larger batch", exc_info=error, extra={"frames": size})
            break
        best = max(trial.frames_per_second for trial in trials)
        too_long = time.monotonic() - started > MEASURE_SECONDS
        if too_long or trials[-1].frames_per_second < HOPELESS * best:
            break
    return trials


def _sizes(largest: int) -> list[int]:
    """Return 1, 2, 4 … and `largest` itself."""
    return [2**power for power in range(largest.bit_length()) if 2**power < largest] + [largest]


def _try(detector: Detector, size: int, meter: MemoryMeter) -> Trial:
    frames = _noise(detector, size)
    meter.begin()
    with torch.inference_mode():
        detector.detect(frames)  # the first call allocates and compiles
        seconds = min(_seconds(detector, frames) for _ in range(ROUNDS))
    return Trial(size, size / seconds, meter.cost())


def _seconds(detector: Detector, frames: Tensor) -> float:
    started = time.perf_counter()
    detector.detect(frames)  # its boxes are in host memory: nothing of it is still under way on a device
    return max(1e-9, time.perf_counter() - started)


def _noise(detector: Detector, count: int) -> Tensor:
    """Return frames where the model is given them: on their device, if it takes them there."""
    width, height = detector.frame_size(*TYPICAL_VIDEO)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return frames.to(detector.device) if detector.takes_device_frames else frames


@dataclass(frozen=True, slots=True)
class SizedDetector:
    """A detector that is given batches of the measured size, not of the largest. Fulfils Detector."""

    detector: Detector
    batch_size: int

    @property
    def name(self) -> str:
        return self.detector.name

    @property
    def fingerprint(self) -> str:
        return self.detector.fingerprint

    @property
    def class_names(self) -> Sequence[str]:
        return self.detector.class_names

    @property
    def default_min_score(self) -> float:
        return self.detector.default_min_score

    @property
    def device(self) -> str:
        return self.detector.device

    @property
    def precision(self) -> str:
        return self.detector.precision

    @property
    def takes_device_frames(self) -> bool:
        return self.detector.takes_device_frames

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return self.detector.frame_size(width, height)

    def detect(self, frames: Tensor) -> list[Detections]:
        return self.detector.detect(frames)
