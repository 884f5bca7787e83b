"""How a device's speed grows with the batch, in each precision, and what the way of frames to it costs.

    python -m benchmarks batches FOLDER VIDEO [--device cuda:0] [--precisions float32 float16] [--largest 64]

FOLDER holds models. For each, on frames of VIDEO that lie in memory, frames a second: *alone*, lying on the
device already; *copied in the call*, as if nothing were done ahead; *as served*, through the device's thread
by two segments' threads, from pinned memory where a device has a use for it. Beside them how busy the device
was in the last (NVML's utilisation; needs nvidia-ml-py) and what it holds. Rounds take turns; medians. Then
what of the certain boxes the CPU has in float32 too, and the host's memory.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.detection.detector import Detections, Detector
from app.detection.device import DeviceThread
from app.detection.devices import make_ready, memory_bytes
from app.detection.frame_copies import pinning_for
from app.detection.precision import Precision
from app.detection.registry import load_detector
from app.errors import ModelFault
from app.memory import memory_use
from benchmarks.machine import describe_machine
from benchmarks.models import frames_of, names_in
from benchmarks.plain_detection import Box, agreement

MIB = 1024 * 1024
FRAMES = 256
COMPARED_FRAMES = 64
SENDERS = 2
LEAST_SECONDS = 1.0  # a round
LOOK_SECONDS = 0.05

Frames = npt.NDArray[np.uint8]  # (n, height, width, 3) RGB


class _Sized:
    def __init__(self, detector: Detector, batch_size: int) -> None:
        self.detector, self.batch_size = detector, batch_size

    def __getattr__(self, name: str) -> object:
        return getattr(self.detector, name)


def sized(detector: Detector, batch_size: int) -> Any:
    """Return `detector` with batches of another size, and with whatever else it can do."""
    return _Sized(detector, batch_size)


def on_whole_pages(frames: Frames) -> Frames:
    """Return a copy that begins where a page of memory does, as a ring does: only so can it be pinned."""
    copy = np.frombuffer(mmap.mmap(-1, frames.nbytes), dtype=np.uint8).reshape(frames.shape)
    copy[:] = frames
    return copy


def repeated(work: Callable[[], int], least_seconds: float = LEAST_SECONDS) -> float:
    """Return frames a second of `work`, which returns how many it did, over `least_seconds` or more."""
    started, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < least_seconds:
        done += work()
    return done / seconds


def in_calls(detector: Detector, frames: Tensor) -> int:
    with torch.inference_mode():
        for batch in frames.split(detector.batch_size):
            detector.detect(batch)
    return len(frames)


def as_served(detector: Detector, frames: Frames, least_seconds: float = LEAST_SECONDS) -> float:
    """Return frames a second with two threads that submit batches, each two ahead, as segments' do."""

    def send(device: DeviceThread) -> int:
        waiting = []
        for first in range(0, len(frames), detector.batch_size):
            waiting.append(device.submit(frames[first : first + detector.batch_size]))
            if len(waiting) == 2:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
        return len(frames)

    with DeviceThread(detector) as device, ThreadPoolExecutor(SENDERS, "sender") as senders:
        return repeated(lambda: sum(senders.map(send, [device] * SENDERS)), least_seconds)


@contextmanager
def utilisation(device: str) -> Iterator[list[float]]:
    """Fill a list with how busy `device` is, in percent; it stays empty where that cannot be told."""
    seen: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            try:
                seen.append(torch.cuda.utilization(device))
            except Exception:  # noqa: BLE001 - NVML, which may be absent, has errors of its own
                return

    watcher = threading.Thread(target=look, name="utilisation")
    if device != "cpu":
        watcher.start()
    try:
        yield seen
    finally:
        done.set()
        if device != "cpu":
            watcher.join()


def measure_batches(
    model: Detector, frames: Frames, sizes: list[int], rounds: int, least_seconds: float = LEAST_SECONDS
) -> dict[int, float]:
    """Print what is told above, a line a size; return frames a second on frames that lie on the device."""
    speeds: dict[int, float] = {}
    print(
        f"{'batch':>6} {'alone':>9} {'in call':>9} {'served':>9} {'served/alone':>13} {'busy':>6} {'MiB':>6}"
    )
    host = torch.from_numpy(frames)
    there = host.to(model.device)
    for size in sizes:
        detector = sized(model, size)
        in_calls(detector, there)  # the first call of a size allocates
        told: list[tuple[float, float, float]] = []
        busy: list[float] = []
        for _ in range(rounds):
            alone = repeated(partial(in_calls, detector, there), least_seconds)
            in_call = repeated(partial(in_calls, detector, host), least_seconds)
            with utilisation(model.device) as seen:
                served = as_served(detector, frames, least_seconds)
            busy += seen
            told.append((alone, in_call, served))
        alone, in_call, served = (statistics.median(column) for column in zip(*told, strict=True))
        held = 0 if model.device == "cpu" else torch.cuda.max_memory_reserved(model.device) // MIB
        share = f"{statistics.mean(busy):.0f}%" if busy else "?"
        ratio = served / alone
        print(
            f"{size:6} {alone:9.1f} {in_call:9.1f} {served:9.1f} {ratio:13.2f} {share:>6} {held:6}",
            flush=True,
        )
        speeds[size] = alone
    return speeds


def boxes_of(detector: Detector, frames: Frames) -> list[list[Box]]:
    found: list[Detections] = []
    with torch.inference_mode():
        for batch in torch.from_numpy(frames).split(detector.batch_size):
            found += detector.detect(batch)
    return [
        [
            {"box": box, "label": detector.class_names[class_id], "score": score}
            for box, class_id, score in zip(
                one.boxes_xyxy.tolist(), one.class_ids.tolist(), one.scores.tolist(), strict=True
            )
        ]
        for one in found
    ]


def compare_with_cpu(model: Detector, reference: Detector, frames: Frames) -> None:
    ours, theirs = boxes_of(model, frames), boxes_of(reference, frames)
    for told, one, other in (("its in the CPU's", ours, theirs), ("the CPU's in its", theirs, ours)):
        result = agreement(one, other)
        print(f"boxes, {told}: {result.agreeing} of {result.compared} ({result.share:.2%})", flush=True)


def tell_memory(device: str) -> None:
    use = memory_use()
    own, peak = use.own // MIB, use.peak_resident // MIB
    total = memory_bytes(device)
    told = "" if total is None else f"; {device} has {total // MIB} MiB"
    print(f"host memory: {own} MiB of its own, {peak} MiB at its peak{told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", nargs="+", type=Precision, default=[Precision.FLOAT32])
    parser.add_argument("--largest", type=int, default=64)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(describe_machine())
    tell_memory("cpu")
    make_ready(chosen.device)
    pinning = pinning_for([chosen.device])
    sizes = [2**power for power in range(chosen.largest.bit_length())]
    for name in names_in(chosen.folder):
        for precision in chosen.precisions:
            try:
                model = load_detector(
                    name, device=chosen.device, models_folder=chosen.folder, precision=precision
                )
            except ModelFault as fault:
                print(f"{name}: {fault.detail}")
                continue
            print(f"{name} on {chosen.device}, {model.precision}")
            frames = on_whole_pages(frames_of(chosen.video, model, chosen.frames))
            if pinning is not None:
                pinning.pin(frames)
            measure_batches(model, frames, sizes, chosen.rounds)
            reference = load_detector(name, device="cpu", models_folder=chosen.folder)
            compare_with_cpu(model, reference, frames[:COMPARED_FRAMES])
            tell_memory(chosen.device)


if __name__ == "__main__":
    main()
