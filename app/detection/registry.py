"""Which detectors there are, by name: the built-in ones, and what lies in the administrator's folder.

The next built-in detector is a file of its own and one line in BUILT_IN; the next model format is a file of
its own and one line in ``models_folder.FORMATS``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

import torch

from app.detection.detector import Detector
from app.detection.hog import HogPeopleDetector
from app.detection.model_content import ModelFiles
from app.detection.models_folder import find_models, load_model
from app.detection.none import NoneDetector
from app.errors import InvalidOption

DetectorFactory = Callable[[str], Detector]  # takes the torch device

BUILT_IN: Mapping[str, DetectorFactory] = MappingProxyType(
    {
        "hog-people": HogPeopleDetector,
        "none": NoneDetector,
    }
)

TYPICAL_VIDEO = (1280, 720)


class ModelDescription(TypedDict):
    """One model as ``/v1/models`` shows it: plain JSON values, so that no web worker needs torch."""

    name: str
    sha256: str
    labels: list[str]
    max_frame_size: list[int]  # [width, height]: larger frames are scaled down to fit it
    default_min_score: float
    device: str
    precision: str
    batch_size: int
    frames_per_second: float  # of 1280 × 720 video at load, decoding apart


def detector_names(models_folder: Path | None = None) -> list[str]:
    """Every name that `load_detector` takes, sorted. A model in the folder hides a built-in of its name."""
    return sorted({*BUILT_IN, *_models(models_folder)})


def load_detector(
    name: str, *, device: str, models_folder: Path | None = None, allowed_hashes: Path | None = None
) -> Detector:
    """Load the detector `name` onto the torch device `device`. Takes seconds: once a process and device.

    Raises InvalidOption, listing what there is, for an unknown name, and ModelFault for a model file that is
    broken, does not say what its output means, or is not in the list `allowed_hashes`.
    """
    models = _models(models_folder)
    if name in models:
        return load_model(name, models[name], device, allowed_hashes=allowed_hashes)
    if name in BUILT_IN:
        return BUILT_IN[name](device)
    names = detector_names(models_folder)
    raise InvalidOption(
        f"There is no model {name!r}. There are: {', '.join(names)}.",
        {"parameter": "model", "allowed": names},
    )


def _models(folder: Path | None) -> dict[str, ModelFiles]:
    return {} if folder is None else find_models(folder)


def describe_detector(detector: Detector, *, measure_seconds: float = 1.0) -> ModelDescription:
    """Return what ``/v1/models`` shows of `detector`, its speed measured here in about that time."""
    return {
        "name": detector.name,
        "sha256": detector.fingerprint,
        "labels": list(detector.class_names),
        "max_frame_size": list(detector.frame_size(2**16, 2**16)),
        "default_min_score": detector.default_min_score,
        "device": detector.device,
        "precision": detector.precision,
        "batch_size": detector.batch_size,
        "frames_per_second": round(_frames_per_second(detector, measure_seconds), 1),
    }


def _frames_per_second(detector: Detector, measure_seconds: float) -> float:
    width, height = detector.frame_size(*TYPICAL_VIDEO)
    generator = torch.Generator().manual_seed(0)
    shape = (detector.batch_size, height, width, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        detector.detect(frames)  # the first call allocates and compiles
        started_at, frame_count = time.perf_counter(), 0
        while True:
            detector.detect(frames)
            frame_count += len(frames)
            elapsed = time.perf_counter() - started_at
            if elapsed >= measure_seconds:
                return frame_count / elapsed
