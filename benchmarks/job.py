"""The whole job against FFmpeg's own decoding, and where a job's time goes. Ratios of one and the same run.

    python -m benchmarks job [--seconds 20] [--video FILE] [--rounds 3]

Speed: detector ``none`` (takes rgb24 frames of at most 640 pixels a side, finds nothing) through
`detect_video`, index and document included, against ``ffmpeg -i v -f null -``, in turns; medians.
Shares: one segment at a time, so that a segment thread's phases are disjoint and add up to the wall time.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from app.detection.model_pool import ModelPool
from app.detection.registry import load_detector
from app.pipeline.detect_video import DetectionRequest, detect_video
from app.pipeline.options import DetectionOptions
from app.settings import Settings, load_settings
from app.video.decoder import DecoderPool
from app.video.process import Pin
from app.video.protocol.limits import VideoLimits
from benchmarks.local_runner import LocalRunner, measured_models
from benchmarks.machine import describe_machine

LOOPS = 5


class Bench:
    """The parts of engine and host in this process."""

    def __init__(self, settings: Settings, models: ModelPool, *, pin: Pin | None = None) -> None:
        """`pin`: as a `DecoderPool` is given it."""
        self._settings = settings
        self._models = models
        self._pin = pin
        self.phases: dict[str, float] = {}

    def run(
        self,
        video: Path,
        model: str,
        *,
        slots: int,
        document: Path | None = None,
        parts_folder: Path | None = None,
    ) -> float:
        """Return the seconds of one whole job; its answer and its parts stay where it is given a place."""
        with tempfile.TemporaryDirectory() as folder, self._decoders() as decoders:
            request = DetectionRequest(
                job_id="benchmark",
                video=video,
                parts_folder=parts_folder or Path(folder) / "parts",
                document=document or Path(folder) / "document",
                pts=Path(folder) / "pts",
                options=DetectionOptions(),
                segment_frames=self._settings.segment_frames,
            )
            with (
                self._models.use(model),
                LocalRunner(slots=slots, decoders=decoders, device_for=self._models.in_use) as runner,
            ):
                started = time.perf_counter()
                detect_video(
                    request,
                    model=self._models.facts_of(model),
                    runner=runner,
                    observe=lambda _progress, _report: None,
                    cancelled=lambda: False,
                )
                seconds = time.perf_counter() - started
                self.phases = runner.phases
                return seconds

    def _decoders(self) -> DecoderPool:
        settings = self._settings
        return DecoderPool(
            limits=VideoLimits(),
            threads=settings.decoder_threads,
            memory_bytes=settings.decoder_memory_bytes,
            ring_bytes=settings.ring_bytes,
            require_sandbox=settings.require_sandbox,
            pin=self._pin,
        )


def make_video(path: Path, codec: str, source: Path | None, seconds: float) -> Path:
    """Write a 1080p video of `source` scaled up, or of a test picture; with noise, as a camera's.

    It is `LOOPS` times `seconds` long, for the last segments leave a core idle, and short videos would
    measure little else.
    """
    picture = ["-i", str(source)] if source else ["-f", "lavfi", "-i", "testsrc2=size=1920x1080:rate=30"]
    encode = [
        "-vf",
        "scale=1920:1080,noise=alls=3:allf=t",
        "-c:v",
        codec,
        "-preset",
        "veryfast",
        "-g",
        "120",
        "-an",
    ]
    once = path.with_stem(f"{path.stem}-once")
    command = ["ffmpeg", "-loglevel", "error", "-y"]
    encoding = [*command, *picture, "-t", str(seconds), *encode, str(once)]
    subprocess.run(encoding, check=True, stdin=subprocess.DEVNULL)
    repeating = [*command, "-stream_loop", str(LOOPS - 1), "-i", str(once), "-c", "copy", str(path)]
    subprocess.run(repeating, check=True, stdin=subprocess.DEVNULL)
    return path


def ffmpeg_seconds(video: Path) -> float:
    started = time.perf_counter()
    command = ["ffmpeg", "-loglevel", "error", "-i", str(video), "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started


def compare(bench: Bench, video: Path, rounds: int, slots: int) -> None:
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(ffmpeg_seconds(video))
        ours.append(bench.run(video, "none", slots=slots))
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(
        f"{video.name}: ffmpeg {statistics.median(theirs):.2f} s, job {statistics.median(ours):.2f} s, "
        f"speed ratio {ratio:.2f} (rounds: {[round(t / o, 2) for t, o in zip(theirs, ours, strict=True)]})"
    )


def shares(bench: Bench, video: Path, model: str) -> None:
    wall = bench.run(video, model, slots=1)
    frames, device = bench.phases["wait_for_frames"], bench.phases["wait_for_device"]
    rest = wall - frames - device
    print(
        f"{video.name} with {model}, one segment at a time: {wall:.2f} s; waiting for frames "
        f"{frames / wall:.1%}, for the detector {device / wall:.1%}, the rest {rest / wall:.1%} "
        f"(of it records {bench.phases['encode'] / wall:.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--video", type=Path, help="real content for the 1080p videos and for the shares")
    arguments = parser.parse_args()
    settings = load_settings()
    print(describe_machine())
    folder = Path(tempfile.mkdtemp())
    try:
        with ModelPool(
            device="cpu",
            find=measured_models(lambda name: load_detector(name, device="cpu")),
        ) as models:
            bench = Bench(settings, models)
            for codec in ("libx264", "libx265"):
                video = make_video(folder / f"1080p-{codec}.mp4", codec, arguments.video, arguments.seconds)
                compare(bench, video, arguments.rounds, settings.decoders)
            if arguments.video:
                for model in ("none", "hog-people"):
                    shares(bench, arguments.video, model)
    finally:
        shutil.rmtree(folder)
