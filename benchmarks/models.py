"""Model files in a job: the same boxes as a plain script's, and how fast, against the model alone.

    python -m benchmarks models FOLDER VIDEO… [--only parity|speed] [--rounds 3]

FOLDER holds the two files of one YOLO network, ``*.pt2`` and ``*.onnx``. Parity: whole videos, a job's
answer against that of `benchmarks.plain_detection`, both ways. Speed, in turns, medians: a job against the
bare model on frames in memory, in the same batches and threads; the job's CPU seconds against those of the
model alone and of decoding alone; and against a loop of cv2.VideoCapture and the ONNX file, on the first
video at 720p and 1080p.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import orjson
import psutil
import torch
from torch import Tensor

from app.detection.detector import Detections, Detector
from app.detection.device import DeviceThread
from app.detection.model_pool import ModelPool
from app.detection.precision import Precision
from app.detection.registry import load_detector
from app.settings import load_settings
from benchmarks.job import Bench
from benchmarks.local_runner import measured_models
from benchmarks.machine import describe_machine
from benchmarks.plain_detection import Box, PlainDetector, agreement, captured, decoded

SAMPLE_SECONDS = 0.05
DECODE_ALONE = "decode alone, as "  # and a model's name: its frames and batches, and no boxes
FRAMES_IN_MEMORY = 128


class FindsNothing:
    """Takes frames as its model does, and does nothing with them. Fulfils Detector."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        # Its own: segments are sent to the device of the model that has their detector's name.
        self.name = DECODE_ALONE + detector.name

    def __getattr__(self, name: str) -> object:
        return getattr(self.detector, name)

    def detect(self, frames: Tensor) -> list[Detections]:
        return [Detections.empty() for _ in frames]


@dataclass
class CpuSeconds:
    """What this process and its descendants took while a block ran; sampled, so a little less than that.

    What the sampling itself takes, up to a fifth of a core, is left out.
    """

    total: float = 0.0


@contextmanager
def cpu_seconds() -> Iterator[CpuSeconds]:
    spent, done = CpuSeconds(), threading.Event()
    last: dict[int, list[float]] = {}  # by process id: seconds at first and at last sight
    sampling: list[float] = []
    own = psutil.Process()

    def look() -> None:
        for process in (own, *own.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            last.setdefault(process.pid, [times.user + times.system, 0.0])[1] = times.user + times.system

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            look()
        sampling.append(time.thread_time())

    look()
    before = dict(last)
    watcher = threading.Thread(target=watch, name="cpu-watch")
    watcher.start()
    try:
        yield spent
    finally:
        done.set()
        watcher.join()
        look()
        # A process that began during the block is charged from zero on.
        spent.total = sum(now - (first if pid in before else 0.0) for pid, (first, now) in last.items())
        spent.total -= sum(sampling)


def pool_of(folder: Path, *, device: str = "cpu", precision: Precision = Precision.FLOAT32) -> ModelPool:
    @functools.cache
    def load_once(name: str) -> Detector:
        return load_detector(name, device=device, models_folder=folder, precision=precision)

    def load(name: str) -> Any:
        model = load_once(name.removeprefix(DECODE_ALONE))
        return FindsNothing(model) if name.startswith(DECODE_ALONE) else model

    return ModelPool(device=device, find=measured_models(load))


def parity(bench: Bench, models: ModelPool, folder: Path, videos: list[Path], scratch: Path) -> None:
    (network,) = folder.glob("*.onnx")
    with models.use(network.stem) as loaded:
        plain = PlainDetector(network, loaded.detector.class_names)
    for video in videos:
        answers: dict[str, list[list[Box]]] = {"plain": [plain.detect(frame) for frame in decoded(video)]}
        for name in names_in(folder):
            bench.run(video, name, slots=2, document=scratch / "document")
            answers[name] = [boxes for _, boxes in orjson.loads((scratch / "document").read_bytes())]
        for one, found in answers.items():
            for other, rivals in answers.items():
                if one != other:
                    result = agreement(found, rivals)
                    told = f"{result.agreeing} of {result.compared} ({result.share:.2%}) of {one} in {other}"
                    print(f"{video.name}: {told}", *result.differences, sep="\n    ", flush=True)


def names_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir() if path.suffix in (".pt2", ".onnx"))


def frames_of(video: Path, detector: Detector, count: int) -> npt.NDArray[np.uint8]:
    """Return the first frames, (n, height, width, 3) RGB, n ≤ `count`, at the size that `detector` wants."""
    frames = []
    for frame in islice(decoded(video), count):
        size = detector.frame_size(frame.shape[1], frame.shape[0])
        frames.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def bare(loaded: DeviceThread, video: Path, count: int) -> tuple[float, float]:
    """Return wall and CPU seconds of the model alone on `count` frames, which lie in memory."""
    detector = loaded.detector
    batches = torch.from_numpy(frames_of(video, detector, FRAMES_IN_MEMORY)).split(loaded.batch_size)
    with torch.inference_mode(), cpu_seconds() as cpu:
        started, done = time.perf_counter(), 0
        while done < count:
            for batch in batches:
                detector.detect(batch)
                done += len(batch)
        seconds = time.perf_counter() - started
    return seconds * count / done, cpu.total * count / done


def frame_count(video: Path) -> int:
    return sum(1 for _ in decoded(video))


def speed(bench: Bench, models: ModelPool, folder: Path, video: Path, rounds: int) -> None:
    count = frame_count(video)
    for name in names_in(folder):
        walls, shares = [], []
        with models.use(name) as loaded, models.use(DECODE_ALONE + name):
            for _ in range(rounds):
                bare_wall, bare_cpu = bare(loaded, video, count)
                with cpu_seconds() as decoding:
                    bench.run(video, DECODE_ALONE + name, slots=2)
                with cpu_seconds() as job:
                    wall = bench.run(video, name, slots=2)
                walls.append((count / wall, count / bare_wall))
                shares.append(job.total / (bare_cpu + decoding.total))
            size = loaded.batch_size
        ours, alone = (statistics.median(column) for column in zip(*walls, strict=True))
        print(
            f"{name}, batches of {size}: job {ours:.1f}/s, bare model {alone:.1f}/s, "
            f"ratio {ours / alone:.2f}; CPU against model and decoding alone: "
            f"{statistics.median(shares):.2f} (rounds {_rounded(shares)})"
        )


def against_a_loop(bench: Bench, models: ModelPool, folder: Path, video: Path, rounds: int) -> None:
    (network,) = folder.glob("*.onnx")
    with models.use(network.stem) as loaded:
        plain = PlainDetector(network, loaded.detector.class_names)
    ratios = []
    for _ in range(rounds):
        theirs = _seconds(lambda: [plain.detect(frame) for frame in captured(video)])
        ratios.append(theirs / bench.run(video, network.stem, slots=2))
    print(
        f"{video.name}: {statistics.median(ratios):.2f} times as fast as a loop (rounds {_rounded(ratios)})"
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]


def scaled(video: Path, path: Path, height: int) -> Path:
    """Write `video` at another height, in H.264."""
    command = ["ffmpeg", "-loglevel", "error", "-y", "-i", str(video), "-vf", f"scale=-2:{height}", "-an"]
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-g", "120", str(path)]
    subprocess.run([*command, *encoder], check=True, stdin=subprocess.DEVNULL)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--only", choices=("parity", "speed"))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with pool_of(chosen.folder) as models:
            bench = Bench(load_settings(), models)
            if chosen.only != "parity":
                speed(bench, models, chosen.folder, chosen.videos[0], chosen.rounds)
                for height in (720, 1080):
                    clip = scaled(chosen.videos[0], scratch / f"{height}p.mp4", height)
                    against_a_loop(bench, models, chosen.folder, clip, chosen.rounds)
            if chosen.only != "speed":
                parity(bench, models, chosen.folder, chosen.videos, scratch)


if __name__ == "__main__":
    main()
