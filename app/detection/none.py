"""The built-in detector ``none``: it finds nothing and takes no time, for measuring everything else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

from app.detection.detector import Detections
from app.detection.resize import fit_within

NAME = "none"
MAX_SIDE = 640


class NoneDetector:
    """Takes frames as a small network would, and returns no box. Fulfils Detector."""

    name = NAME
    fingerprint = hashlib.sha256(b"none, revision 1").hexdigest()
    class_names: Sequence[str] = ()
    default_min_score = 0.0
    batch_size = 16
    precision = "uint8"
    takes_device_frames = False

    def __init__(self, device: str) -> None:
        self.device = device

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return fit_within(width, height, MAX_SIDE)

    def detect(self, frames: Tensor) -> list[Detections]:
        return [Detections.empty() for _ in range(len(frames))]
