"""Which detectors there are, by name: the built-in ones, and what lies in the administrator's folder.

The next built-in detector is a file of its own and one line in BUILT_IN; the next model format is a file of
its own and one line in ``models_folder.FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from app.detection.detector import Detector
from app.detection.hog import HogPeopleDetector
from app.detection.measuring import ModelProfile
from app.detection.model_content import ModelFiles
from app.detection.model_facts import ModelFacts, PrecisionEffect
from app.detection.models_folder import find_models, load_model
from app.detection.none import NoneDetector
from app.detection.precision import Precision
from app.errors import InvalidOption

DetectorFactory = Callable[[str], Detector]  # takes the torch device

BUILT_IN: Mapping[str, DetectorFactory] = MappingProxyType(
    {
        "hog-people": HogPeopleDetector,
        "none": NoneDetector,
    }
)


def detector_names(models_folder: Path | None = None) -> list[str]:
    """Every name that `load_detector` takes, sorted. A model in the folder hides a built-in of its name."""
    return sorted({*BUILT_IN, *_models(models_folder)})


def load_detector(
    name: str,
    *,
    device: str,
    models_folder: Path | None = None,
    allowed_hashes: Path | None = None,
    precision: Precision = Precision.FLOAT32,
) -> Detector:
    """Load the detector `name` onto the torch device `device`. Takes seconds: once a process and device.

    `precision`: of networks on CUDA that do not say it themselves.

    Raises InvalidOption, listing what there is, for an unknown name, and ModelFault for a model file that is
    broken, does not say what its output means, or is not in the list `allowed_hashes`.
    """
    models = _models(models_folder)
    if name in models:
        return load_model(name, models[name], device, allowed_hashes=allowed_hashes, precision=precision)
    if name in BUILT_IN:
        return BUILT_IN[name](device)
    names = detector_names(models_folder)
    raise InvalidOption(
        f"There is no model {name!r}. There are: {', '.join(names)}.",
        {"parameter": "model", "allowed": names},
    )


def _models(folder: Path | None) -> dict[str, ModelFiles]:
    return {} if folder is None else find_models(folder)


def describe_detector(detector: Detector, profile: ModelProfile, runtime: str) -> ModelFacts:
    """Return what is known of a loaded `detector` that was measured so. `runtime`: see `describe_runtime`."""
    effect = profile.get("precision_effect")
    return ModelFacts(
        name=detector.name,
        sha256=detector.fingerprint,
        labels=tuple(detector.class_names),
        input_size=_input_size(detector),
        default_min_score=detector.default_min_score,
        device=detector.device.partition(":")[0],
        precision=detector.precision,
        precision_effect=None if effect is None else PrecisionEffect.model_validate(effect),
        batch_size=detector.batch_size,
        frames_per_second=profile["frames_per_second"],
        memory_bytes=max(profile["host_bytes"], profile["loading_bytes"]),
        device_memory_bytes=profile["device_bytes"],
        runtime=runtime,
    )


def _input_size(detector: Detector) -> tuple[int, int]:
    """Return the (width, height) that no frame exceeds: the width of a long one, the height of a tall one."""
    (width, _), (_, height) = detector.frame_size(2**16, 1), detector.frame_size(1, 2**16)
    return width, height
