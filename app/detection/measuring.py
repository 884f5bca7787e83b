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
from app.detection.side_by_side import Arrangement, SideBySide
from app.memory import forget_peak, give_back_free_memory, memory_use

REVISION = 3  # of ModelProfile; raised when older profiles lack something or mean something else
TYPICAL_VIDEO = (1280, 720)
TURNS = 5  # of two that are compared
LONGEST_TURN = 32  # calls in each thread, beside the first
LEAST_TURNS = 2  # even if they take longer than MEASURE_SECONDS
ROUNDS = 3  # the fastest counts: other work on the machine only ever slows a round down
ROUND_SECONDS = 0.2  # at least, if a piece is short
MEASURE_SECONDS = 3.0  # no larger piece is begun after that
PIECE_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
# Of a batch of several pieces: at most so long, and so many frames.
BATCH_SECONDS = 0.25
BATCH_FRAMES = 8
GOOD_ENOUGH = 0.95  # of the best speed: the smallest batch that reaches it takes the least memory
# That one call in all threads must have over one call in each thread: a video's decoders also want the cores,
# and each step of a call that threads share waits for the last of them.
SHARED_GAIN = 1.25
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
    piece_size: int  # this and the following: as in Arrangement
    callers: int
    inner_threads: int | None
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
class Timing:
    """How fast an arrangement was, and what it took."""

    piece_size: int  # frames in a call
    frames_per_second: float
    cost: MemoryCost
    callers: int = 1  # threads that call the detector side by side
    inner_threads: int | None = None  # as in Arrangement

    @property
    def arrangement(self) -> Arrangement:
        batch_size = self.piece_size
        if self.inner_threads is not None:  # a batch costs messages, and a decoder delivers it as a whole
            together = self.piece_size * self.callers
            wanted = min(BATCH_SECONDS * self.frames_per_second, BATCH_FRAMES)
            batch_size = together * max(1, round(wanted / together))
        return Arrangement(batch_size, self.piece_size, self.callers, self.inner_threads)


def measure(
    detector: Detector,
    meter: MemoryMeter,
    loading: MemoryCost | None = None,
    *,
    may_economise: bool = True,
) -> ModelProfile:
    """Find the fastest arrangement of `detector`, its cost then, and the effect of 16 bits on its boxes.

    `meter` was made before the detector was loaded, which cost `loading`: by default what `meter` says now.
    On a CPU, a network that several threads may run is tried in as many as torch would compute with here, and
    in one that computes with all of them, unless its calls take a fixed number. One for which there is no
    memory is passed over if the model `may_economise`. Raises whatever the model raises for one frame.
    """
    loading = loading or meter.cost()
    divisions: list[tuple[int, int | None]] = [(1, None)]
    if isinstance(detector, NetworkDetector) and detector.device == "cpu":
        divisions = _divisions(detector) if detector.loaded.network.is_stateless() else [(1, None)]
    timings: list[Timing] = []  # the best of each division
    failure: Exception | None = None
    for callers, inner_threads in divisions:
        try:
            timings.append(best_timing(_try_sizes(detector, meter, callers, inner_threads)))
        except Exception as error:
            if not may_economise or not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # whose calls hold memory; one call at a time may fit
    if not timings and failure is not None:
        raise failure
    chosen = timings[0]
    for shared in timings[1:]:
        if speed_ratio((detector, shared.arrangement), (detector, chosen.arrangement)) > SHARED_GAIN:
            chosen = shared
    how = chosen.arrangement
    profile: ModelProfile = {
        "batch_size": how.batch_size,
        "piece_size": how.piece_size,
        "callers": how.callers,
        "inner_threads": how.inner_threads,
        "frames_per_second": round(chosen.frames_per_second, 1),
        "host_bytes": chosen.cost.host_bytes,
        "loading_bytes": loading.host_bytes,
        "device_bytes": max(loading.device_bytes, chosen.cost.device_bytes),
    }
    if isinstance(detector, NetworkDetector) and detector.reference is not None:
        profile["precision_effect"] = measure_effect(detector, detector.reference).model_dump()
    return profile


def arrangement_of(profile: ModelProfile) -> Arrangement:
    """Return how batches are divided for a detector with that profile."""
    return Arrangement(
        profile["batch_size"], profile["piece_size"], profile["callers"], profile["inner_threads"]
    )


def is_faster(one: NetworkDetector, other: NetworkDetector) -> bool:
    """Whether `one` takes less time than `other` for the same frames.

    Both on a CPU, in as many calls of one thread each as torch would compute with here.
    """
    is_stateless = all(detector.loaded.network.is_stateless() for detector in (one, other))
    callers = torch.get_num_threads() if is_stateless else 1
    sizes = [detector.loaded.batch or 1 for detector in (one, other)]
    how, other_how = (Arrangement(size, size, callers, 1) for size in sizes)
    return speed_ratio((one, how), (other, other_how)) > 1


def speed_ratio(one: tuple[Detector, Arrangement], other: tuple[Detector, Arrangement]) -> float:
    """Return how many times as fast the first is as the second, each in an arrangement; both on a CPU.

    They take turns, so that other work on the machine slows down both, and the median of the turns counts.
    """
    works: list[tuple[SideBySide, Detector, list[Tensor]]] = []
    for detector, how in (one, other):
        inner_threads = how.inner_threads or torch.get_num_threads()
        threads = SideBySide("comparing", count=how.callers, inner_threads=inner_threads)
        scenes = golden_scenes(*detector.frame_size(*TYPICAL_VIDEO))
        frames = scenes[torch.arange(how.piece_size) % len(scenes)]
        works.append((threads, detector, [frames] * how.callers))
    ratios, started = [], time.monotonic()
    for turn in range(1 + TURNS):  # the first one allocates and compiles
        speeds = []
        for threads, detector, pieces in works:
            began = time.perf_counter()
            threads.run(detector.detect, pieces)
            seconds = time.perf_counter() - began
            speeds.append(sum(map(len, pieces)) / max(1e-9, seconds))
            if turn == 0:
                # At the end of a turn threads wait for each other, which they do not in a job.
                pieces.extend(pieces * min(LONGEST_TURN, int(ROUND_SECONDS / max(1e-9, seconds))))
        ratios.append(speeds[0] / speeds[1])
        if turn >= LEAST_TURNS and time.monotonic() - started > MEASURE_SECONDS:
            break
    return statistics.median(ratios[1:])


def best_timing(timings: Sequence[Timing]) -> Timing:
    """Return the timing with the smallest pieces that is about as fast as the fastest."""
    best = max(timing.frames_per_second for timing in timings)
    good = [timing for timing in timings if timing.frames_per_second >= GOOD_ENOUGH * best]
    return min(good, key=lambda timing: timing.piece_size)


def _divisions(detector: NetworkDetector) -> list[tuple[int, int | None]]:
    """Return how torch's threads may be divided: into so many calls of so many threads each."""
    count, fixed = torch.get_num_threads(), detector.loaded.network.threads
    if fixed is not None:
        return [(max(1, count // fixed), fixed)]
    return [(count, 1), (1, count)] if count > 1 else [(1, 1)]


def _try_sizes(
    detector: Detector, meter: MemoryMeter, callers: int, inner_threads: int | None
) -> list[Timing]:
    """Try pieces of growing size. Raises whatever the model raises for the smallest."""
    largest, started = detector.batch_size, time.monotonic()
    sizes = [*(size for size in PIECE_SIZES if size < largest), largest]
    if isinstance(detector, NetworkDetector) and detector.loaded.batch is not None:
        sizes = [detector.loaded.batch]
    timings: list[Timing] = []
    threads = SideBySide("measuring", count=callers, inner_threads=inner_threads or torch.get_num_threads())
    for size in sizes:
        try:
            speed = _try_pieces(detector, size, meter, threads)
        except Exception as error:
            if not timings or isinstance(error, torch.AcceleratorError):
                raise
            if not is_out_of_memory(error):  # a network may be exported for a largest batch
                _log.warning("model fails on a larger batch", exc_info=error, frames=size)
            break
        timings.append(Timing(size, speed, meter.cost(), callers, inner_threads))
        best = max(timing.frames_per_second for timing in timings)
        if time.monotonic() - started > MEASURE_SECONDS or speed < HOPELESS * best:
            break
    return timings


def _try_pieces(detector: Detector, size: int, meter: MemoryMeter, threads: SideBySide) -> float:
    """Return how many frames a second are detected in pieces of `size`, in all threads."""
    width, height = detector.frame_size(*TYPICAL_VIDEO)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (size, height, width, 3), dtype=torch.uint8, generator=generator)
    if detector.takes_device_frames:  # as it is given them later
        frames = frames.to(detector.device)
    meter.begin()
    pieces = [frames] * threads.count
    threads.run(detector.detect, pieces)  # the first calls allocate and compile
    best_seconds = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        threads.run(detector.detect, pieces)  # its boxes are in host memory: the device has finished
        seconds = (time.perf_counter() - started) / len(pieces)
        best_seconds = min(best_seconds, seconds)
        # Several pieces a thread, if that takes no time: the last ones wait for each other.
        pieces = [frames] * (threads.count * max(1, min(4, int(ROUND_SECONDS / max(1e-9, seconds)))))
    return size / max(1e-9, best_seconds)


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
    shared = torch.from_numpy(overlaps(together.numpy()))[:count, count:]  # (count, k)
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
