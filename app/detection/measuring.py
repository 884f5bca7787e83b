"""What a model costs and its best batch size: measured once for each model and device, then kept."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import structlog
import torch
from torch import Tensor

from app.detection.detector import Detections, Detector, is_out_of_memory
from app.detection.golden import golden_scenes
from app.detection.model_facts import PrecisionEffect
from app.detection.network import NetworkDetector
from app.detection.network_output import overlaps
from app.memory import forget_peak, give_back_free_memory, memory_use

REVISION = 2  # of ModelProfile; raised when older profiles lack something or mean something else
TYPICAL_VIDEO = (1280, 720)
TURNS = 5  # of two detectors that are compared
ROUNDS = 3  # the fastest counts: other work on the machine only ever slows a round down
MEASURE_SECONDS = 3.0  # no larger batch is begun after that
GOOD_ENOUGH = 0.95  # of the best speed: the smallest batch that reaches it takes the least memory
HOPELESS = 0.8  # of the best speed: below it, still larger batches are not tried

# Intersection over union of two boxes, one in 16 bits and one in float32
SAME_PLACE = 0.95  # that count as equal
SAME_THING = 0.5  # that are compared

_log = structlog.get_logger(__name__)


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
    frames_per_second: float  # of 1280 × 720 video, without decoding
    host_bytes: int  # host memory with a batch of that size
    loading_bytes: int  # host memory at its peak while it loads
    device_bytes: int  # memory of the device, if that has its own
    precision_effect: NotRequired[dict[str, float]]  # PrecisionEffect, of a network that was given 16 bits


class MemoryMeter:
    """Measures the peak of what this process, all threads included, and a device take more than at first."""

    def __init__(self, device: str) -> None:
        self._device = device
        drop_unused()
        self._resident = memory_use().resident
        self._free_on_device = self._read_free_on_device()
        forget_peak()

    def _read_free_on_device(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0] if self._device.startswith("cuda") else 0

    def begin(self) -> None:
        """Give back unused memory, and begin a new peak."""
        drop_unused()
        forget_peak()

    def cost(self) -> MemoryCost:
        """Return the peak since the last `begin`. A device's allocator keeps its memory: now is its peak."""
        return MemoryCost(
            host_bytes=max(0, memory_use().peak_resident - self._resident),
            device_bytes=max(0, self._free_on_device - self._read_free_on_device()),
        )


def drop_unused() -> None:
    """Give back what unloaded models have left behind: to the system, and to the device."""
    gc.collect()
    give_back_free_memory()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Trial:
    """A batch size that was tried."""

    batch_size: int
    frames_per_second: float
    cost: MemoryCost


def measure(detector: Detector, meter: MemoryMeter) -> ModelProfile:
    """Find the fastest batch size of `detector`, its cost then, and the effect of 16 bits on its boxes.

    `meter` was made before the detector was loaded. Tries powers of two up to the detector's own batch size.
    Raises whatever the model raises for one frame.
    """
    loading = meter.cost()
    started = time.monotonic()
    largest = detector.batch_size
    trials: list[Trial] = []
    for size in [2**power for power in range(largest.bit_length()) if 2**power < largest] + [largest]:
        try:
            trials.append(_try_batches(detector, size, meter))
        except Exception as error:
            if not trials or isinstance(error, torch.AcceleratorError):
                raise
            if not is_out_of_memory(error):  # a network may be exported for a largest batch
                _log.warning("model fails on a larger batch", exc_info=error, frames=size)
            break
        best = max(trial.frames_per_second for trial in trials)
        too_long = time.monotonic() - started > MEASURE_SECONDS
        if too_long or trials[-1].frames_per_second < HOPELESS * best:
            break
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


def is_faster(one: Detector, other: Detector) -> bool:
    """Whether `one` takes less time than `other` for the same frames: the median of rounds in turns."""
    width, height = one.frame_size(*TYPICAL_VIDEO)
    scenes = golden_scenes(width, height)
    ratios = []
    with torch.inference_mode():
        for _ in range(1 + TURNS):  # the first round allocates and compiles
            seconds = []
            for detector in (one, other):
                frames = scenes[: detector.batch_size]
                started = time.perf_counter()
                detector.detect(frames)
                seconds.append((time.perf_counter() - started) / len(frames))
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:]) < 1


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the smallest batch of `trials`, smallest first, that is about as fast as the fastest."""
    best = max(trial.frames_per_second for trial in trials)
    return next(trial for trial in trials if trial.frames_per_second >= GOOD_ENOUGH * best)


def _try_batches(detector: Detector, size: int, meter: MemoryMeter) -> Trial:
    width, height = detector.frame_size(*TYPICAL_VIDEO)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (size, height, width, 3), dtype=torch.uint8, generator=generator)
    if detector.takes_device_frames:  # as it is given them later
        frames = frames.to(detector.device)
    meter.begin()
    seconds = float("inf")
    with torch.inference_mode():
        detector.detect(frames)  # the first call allocates and compiles
        for _ in range(ROUNDS):
            started = time.perf_counter()
            detector.detect(frames)  # its boxes are in host memory: the device has finished
            seconds = min(seconds, time.perf_counter() - started)
    return Trial(size, size / max(1e-9, seconds), meter.cost())


# ---- 16 bits against float32


def measure_effect(lowered: Detector, reference: Detector) -> PrecisionEffect:
    """Compare the boxes of `lowered` and `reference` on drawn scenes. Raises whatever they raise."""
    width, height = lowered.frame_size(*TYPICAL_VIDEO)
    scale = torch.tensor([TYPICAL_VIDEO[0] / width, TYPICAL_VIDEO[1] / height] * 2)
    effects = []
    for scene in golden_scenes(width, height):
        with torch.inference_mode():
            (ours,), (theirs,) = (model.detect(scene[None]) for model in (lowered, reference))
        for one, other in ((ours, theirs), (theirs, ours)):
            effects.append(_compare(one, other, scale, lowered.default_min_score))
    return PrecisionEffect(
        boxes=sum(effect.boxes for effect in effects),
        matched=sum(effect.matched for effect in effects),
        score_difference=round(max(effect.score_difference for effect in effects), 4),
        box_difference_pixels=round(max(effect.box_difference_pixels for effect in effects), 2),
    )


def _compare(one: Detections, other: Detections, scale: Tensor, min_score: float) -> PrecisionEffect:
    """Match the boxes of `one` that reach `min_score` with those of `other`, whatever their score."""
    count = int((one.scores >= min_score).sum())  # the best come first
    if count == 0 or len(other.scores) == 0:
        return PrecisionEffect(boxes=count, matched=0, score_difference=0.0, box_difference_pixels=0.0)
    together = torch.cat([one.boxes_xyxy[:count], other.boxes_xyxy])
    shared = overlaps(together[None])[0, :count, count:]  # (count, k)
    shared = shared * (one.class_ids[:count, None] == other.class_ids)
    overlap, partner = shared.max(dim=1)
    is_same = overlap > SAME_THING
    scores = (one.scores[:count] - other.scores[partner]).abs()[is_same]
    sides = ((one.boxes_xyxy[:count] - other.boxes_xyxy[partner]) * scale).abs()[is_same].flatten()
    return PrecisionEffect(
        boxes=count,
        matched=int((overlap > SAME_PLACE).sum()),
        score_difference=max(scores.tolist(), default=0.0),
        box_difference_pixels=max(sides.tolist(), default=0.0),
    )
