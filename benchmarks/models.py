"""Model files in a job: the same boxes as a plain script's, and how fast, against the runtime and others.

    python -m benchmarks models FOLDER VIDEO… [--only parity|speed] [--rounds 5] [--heights 720 1080]
        [--ultralytics PYTHON]

FOLDER holds the files of one YOLO network, at most one of them ``*.onnx``. Parity: whole videos, a job's
answer against that of `benchmarks.plain_detection`, both ways. Speed, frames a second on the first video, in
turns, medians:

- bare: the runtime alone on tensors in memory, in the fastest of several arrangements;
- detector: what a job calls, on frames in memory, in as many threads;
- job: the whole job, the index and the answer included;
- cv2 loop: cv2.VideoCapture, the ONNX file in onnxruntime with its own settings, and suppression in numpy;
- Ultralytics: its ``predict(stream=True)``, with PYTHON of an environment that has it.

Models are tried as by the service: those of torch are converted where onnxruntime is faster. Then the job's
CPU seconds against those of the detector alone and of decoding alone. The same on the first video at those
heights.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import orjson
import psutil
import torch
from torch import Tensor

from app.detection.detector import Detections, Detector
from app.detection.device import DeviceThread
from app.detection.devices import describe_runtime
from app.detection.measuring import ModelProfile, arrangement_of
from app.detection.model_facts import Verdict
from app.detection.model_files import read_model
from app.detection.model_pool import ModelBudget, ModelPool, TriedModel
from app.detection.network import Network, NetworkDetector
from app.detection.network_input import to_network_input
from app.detection.precision import Precision
from app.detection.registry import Tried, load_detector, load_model
from app.detection.side_by_side import SideBySide
from app.detection.trial import convert_model, cost_of, try_model
from app.settings import load_settings
from benchmarks.job import Bench
from benchmarks.local_runner import measured_models
from benchmarks.machine import describe_machine
from benchmarks.plain_detection import Box, PlainDetector, agreement, captured, decoded

SAMPLE_SECONDS = 0.05
DECODE_ALONE = "decode alone, as "  # and a model's name: its frames and batches, and no boxes
FRAMES_IN_MEMORY = 128
BARE_FRAMES = 32  # as many are in memory as tensors
LEAST_SECONDS = 3.0  # of a measurement without a job


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


def tried_by_trial(folder: Path, name: str) -> tuple[TriedModel, Callable[[int], Network]]:
    """Return a model as a host finds it after its trials on the CPU, and what loads its network bare.

    The latter takes how many threads share a call of a network in ONNX.
    """
    content = read_model(name, folder, None)
    assert content is not None
    runtime = describe_runtime("cpu", threads=torch.get_num_threads())

    def verdict_on(tried: Tried | None) -> Verdict:
        verdict = try_model(
            content,
            device="cpu",
            precision=Precision.FLOAT32,
            budget=ModelBudget(),
            runtime=runtime,
            tried=tried,
        )
        assert verdict.facts is not None, verdict.refusal
        return verdict

    verdict = verdict_on(None)
    tried = Tried(verdict.declaration, convert_model(content, verdict, Precision.FLOAT32))
    if tried.onnx is not None:
        verdict = verdict_on(tried)
    profile = cast("ModelProfile", verdict.profile)

    def load(threads: int) -> NetworkDetector:
        chosen = replace(tried, threads=threads)
        detector = load_model(content, device="cpu", precision=Precision.FLOAT32, tried=chosen)
        assert isinstance(detector, NetworkDetector)
        return detector

    detector = load(profile["inner_threads"] or 1)
    assert verdict.facts is not None
    model = TriedModel(verdict.facts, cost_of(profile), arrangement_of(profile), lambda: detector)
    return model, lambda threads: load(threads).loaded.network


def pool_of(folder: Path, *, device: str = "cpu", precision: Precision = Precision.FLOAT32) -> ModelPool:
    """Return a pool of the folder's models, measured in this process, and of decoding alone as for each."""

    @functools.cache
    def load_once(name: str) -> Detector:
        return load_detector(name, device=device, models_folder=folder, precision=precision)

    def load(name: str) -> Any:
        model = load_once(name.removeprefix(DECODE_ALONE))
        return FindsNothing(model) if name.startswith(DECODE_ALONE) else model

    return ModelPool(device=device, find=measured_models(load))


def pool_of_tried(found: Mapping[str, TriedModel]) -> ModelPool:
    """Return a pool of these models, and of decoding alone as for each of them."""

    def find(name: str, _: Verdict | None) -> TriedModel:
        model = found[name.removeprefix(DECODE_ALONE)]
        if not name.startswith(DECODE_ALONE):
            return model
        facts = model.facts.model_copy(update={"name": name})
        return replace(model, facts=facts, load=lambda: cast("Detector", FindsNothing(model.load())))

    return ModelPool(device="cpu", find=find)


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


def best_bare(load: Callable[[int], Network], pictures: Tensor) -> tuple[str, Callable[[], float]]:
    """Return the fastest arrangement of a network, in words, and what measures its frames per second.

    `pictures`: some frames as the network takes them. Tried are one call a thread, one call in all threads,
    and one call a thread in all threads, of 1 to 8 frames.
    """
    count = torch.get_num_threads()
    tried: list[tuple[float, str, Callable[[], float]]] = []
    for callers, inner in sorted({(count, 1), (1, count), (count, count)}):
        network = load(inner)
        threads = SideBySide("bare", count=callers, inner_threads=inner)
        for size in (1, 2, 4, 8) if network.takes.batch is None else [network.takes.batch]:
            pieces = [piece.contiguous() for piece in torch.split(pictures, size) if len(piece) == size]
            run: Callable[[], float] = functools.partial(_rate, threads, network.run, pieces)
            run()  # the first calls allocate
            tried.append((run(), f"{callers} × {inner} threads, {size} a call", run))
    _, told, run = max(tried, key=lambda one: one[0])
    return told, run


def detector_rate(loaded: DeviceThread, frames: Tensor) -> float:
    """Return the frames per second of the detector on frames in memory, divided among threads as in a job."""
    how = loaded.arrangement
    threads = SideBySide(
        "detector", count=how.callers, inner_threads=how.inner_threads or torch.get_num_threads()
    )
    return _rate(threads, loaded.detector.detect, torch.split(frames, how.piece_size))


def _rate(threads: SideBySide, work: Callable[[Tensor], object], pieces: Sequence[Tensor]) -> float:
    started, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < LEAST_SECONDS:
        threads.run(work, pieces)
        done += sum(map(len, pieces))
    return done / seconds


ULTRALYTICS = """
import sys, time
from ultralytics import YOLO
model, video, side = YOLO(sys.argv[1], task="detect"), sys.argv[2], int(sys.argv[3])
def frames():
    return sum(1 for _ in model.predict(video, stream=True, verbose=False, imgsz=side, rect=False))
frames()  # loads the network
for line in sys.stdin:
    started = time.perf_counter()
    print("rate", frames() / (time.perf_counter() - started), flush=True)
"""


@contextmanager
def ultralytics(python: Path, network: Path, video: Path, side: int) -> Iterator[Callable[[], float]]:
    """Yield what measures the frames per second of Ultralytics' own loop, in a process of its own."""
    command = [str(python), "-c", ULTRALYTICS, str(network), str(video), str(side)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def rate() -> float:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return next(float(line.split()[1]) for line in process.stdout if line.startswith("rate"))  # type: ignore[union-attr]

        yield rate
        process.stdin.close()


def frame_count(video: Path) -> int:
    return sum(1 for _ in decoded(video))


def speed(
    bench: Bench,
    models: ModelPool,
    name: str,
    load: Callable[[int], Network],
    video: Path,
    rounds: int,
    peers: Mapping[str, Callable[[], float]],
) -> None:
    """Print how fast a model is: bare, as a detector and in a job, and against `peers`, in turns."""
    count = frame_count(video)
    with models.use(name) as loaded, models.use(DECODE_ALONE + name):
        detector = loaded.detector
        assert isinstance(detector, NetworkDetector)
        frames = torch.from_numpy(frames_of(video, detector, FRAMES_IN_MEMORY))
        part = frames[:BARE_FRAMES]
        whole = detector.loaded
        pictures = to_network_input(whole.fitting.fill(part, "cpu"), whole.network.takes, whole.pixels)
        how, bare_rate = best_bare(load, pictures)
        measured: dict[str, Callable[[], float]] = {
            "bare": bare_rate,
            "detector": lambda: detector_rate(loaded, frames),
            "job": lambda: count / bench.run(video, name, slots=2),
            **peers,
        }
        table = [{told: rate() for told, rate in measured.items()} for _ in range(rounds)]
        with cpu_seconds() as decoding:
            bench.run(video, DECODE_ALONE + name, slots=2)
        with cpu_seconds() as alone:
            rate = detector_rate(loaded, frames)
        alone.total *= count / (rate * LEAST_SECONDS)
        with cpu_seconds() as job:
            bench.run(video, name, slots=2)
        arrangement = loaded.arrangement
    print(f"{name} in {whole.network.run_by}, {video.name}; bare: {how}; job: {arrangement}")
    for told in measured:
        ratios = [row["job"] / row[told] for row in table]
        median = statistics.median(row[told] for row in table)
        print(
            f"    {told}: {median:.1f} frames/s; job ÷ {told}: {statistics.median(ratios):.2f} "
            f"(rounds {_rounded(ratios)})"
        )
    share = job.total / (alone.total + decoding.total)
    print(f"    CPU of the job ÷ that of detector and decoding: {share:.2f}", flush=True)


def loop_rate(plain: PlainDetector, video: Path) -> float:
    """Return the frames per second of a loop of cv2.VideoCapture and the ONNX file."""
    started = time.perf_counter()
    count = sum(1 for frame in captured(video) if plain.detect(frame) is not None)
    return count / (time.perf_counter() - started)


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heights", type=int, nargs="*", default=[720, 1080])
    parser.add_argument("--ultralytics", type=Path, metavar="PYTHON")
    chosen = parser.parse_args()
    print(describe_machine())
    tried = {name: tried_by_trial(chosen.folder, name) for name in names_in(chosen.folder)}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        with pool_of_tried({name: model for name, (model, _) in tried.items()}) as models:
            bench = Bench(load_settings(), models)
            if chosen.only != "parity":
                videos = [chosen.videos[0]]
                videos += [scaled(videos[0], scratch / f"{height}p.mp4", height) for height in chosen.heights]
                for video in videos:
                    with peers_of(chosen.folder, tried, video, chosen.ultralytics) as peers:
                        for name, (_, load) in tried.items():
                            speed(bench, models, name, load, video, chosen.rounds, peers)
            if chosen.only != "speed":
                parity(bench, models, chosen.folder, chosen.videos, scratch)


@contextmanager
def peers_of(
    folder: Path,
    tried: Mapping[str, tuple[TriedModel, Callable[[int], Network]]],
    video: Path,
    python: Path | None,
) -> Iterator[dict[str, Callable[[], float]]]:
    """Yield what measures others' loops on the ONNX file of `folder`; nothing if there is none."""
    networks = [*folder.glob("*.onnx")]
    if not networks:
        yield {}
        return
    facts = tried[networks[0].stem][0].facts
    plain = PlainDetector(networks[0], facts.labels)
    peers = {"cv2 loop": lambda: loop_rate(plain, video)}
    if python is None:
        yield peers
        return
    with ultralytics(python, networks[0], video, max(facts.input_size)) as rate:
        yield peers | {"Ultralytics": rate}


if __name__ == "__main__":
    main()
