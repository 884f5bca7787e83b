"""What the steps of `benchmarks.gpu_check` share."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from app.detection.detector import Detector
from app.detection.device import DeviceThread
from app.detection.devices import make_ready
from app.detection.frame_copies import pinning_for
from app.detection.precision import Precision
from app.settings import load_settings
from benchmarks.batches import Frames, on_whole_pages
from benchmarks.job import Bench
from benchmarks.models import DECODE_ALONE, pool_of
from benchmarks.seeded import scene


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is."""

    video: tuple[int, int]  # width, height
    gop: int  # frames, and those of a segment
    loops: tuple[int, int]  # of the group of pictures, in a video and a long one
    side: int  # of the small network's pictures
    channels: int
    large_side: int
    slots: int  # decoders at a time, at most; the least is what an instance has by default
    largest_batch: int
    seconds: float  # a figure, at least


MIB = 1024 * 1024
SMALL = Sizes((320, 180), 30, (4, 8), 96, 8, 96, 2, 4, 0.1)
FULL = Sizes((1920, 1080), 120, (12, 24), 416, 32, 640, max(3, len(os.sched_getaffinity(0)) - 2), 64, 0.5)


class Check:
    """Where the steps' files are, what they run on, and how they tell what they found."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        self.device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.precisions = (
            [Precision.FLOAT32] if self.device == "cpu" else [Precision.FLOAT32, Precision.FLOAT16]
        )
        self.arguments = ["--folder", str(folder), *(["--small"] if sizes is SMALL else [])]
        self.video, self.long_video = folder / "video.mp4", folder / "long.mp4"

    def tell(self, what: str, figure: object) -> None:
        print(f"{what}: {figure}", flush=True)
        with (self.folder / "figures").open("a", encoding="utf-8") as file:
            file.write(json.dumps([what, str(figure)]) + "\n")

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Go on after the block if it fails, and tell so: the step's other figures are worth having."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            self.tell(what, f"NOT DONE: {type(error).__name__}: {error}")

    @contextmanager
    def bench(self, name: str, precision: str) -> Iterator[tuple[Bench, DeviceThread]]:
        make_ready(self.device)
        pinning = pinning_for([self.device])
        is_open = (self.folder / "no-sandbox").exists()
        settings = load_settings(segment_frames=self.sizes.gop, require_sandbox=not is_open)
        models = self.folder / "models"
        with (
            pool_of(models, device=self.device, precision=Precision(precision)) as pool,
            pool.use(name) as loaded,
            pool.use(DECODE_ALONE + name),
        ):
            yield Bench(settings, pool, pin=None if pinning is None else pinning.pin), loaded

    def frames(self, detector: Detector, count: int) -> Frames:
        width, height = detector.frame_size(*self.sizes.video)
        return on_whole_pages(np.stack(list(scene(count, width, height))))
