"""Detectors that are Python classes, named in ``framebox.toml``: ``entry_point = "module:Class"``.

The module lies beside the declaration, or belongs to an installed package. The class is made with the
model's folder and a torch device, and has what `Detector` asks for but its name, fingerprint and device.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from app.detection.checks import check_batch
from app.detection.declaration import validated
from app.detection.detector import Detections
from app.detection.golden import golden_picture
from app.detection.model_content import ModelContent, changed_fault, hash_model
from app.detection.model_modules import import_beside
from app.detection.network import reason
from app.errors import ModelFault

ENTRY_POINT = "entry_point"
LARGEST_BATCH = 1024
TRIED_VIDEO = (1280, 720)

_METHODS = ("frame_size", "detect")
_MEMBERS = ("class_names", "default_min_score", "batch_size", "precision", *_METHODS)


class EntryPointDeclaration(BaseModel):
    """What ``framebox.toml`` says of a Python class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry_point: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


class EntryPointDetector:
    """Somebody's object, with the name and the fingerprint of its files. Fulfils Detector."""

    takes_device_frames = False  # it may be made for numpy

    def __init__(self, inner: Any, *, name: str, fingerprint: str, device: str) -> None:
        """Raises what the object's attributes raise, and ValueError for those that make no sense."""
        self.name = name
        self.fingerprint = fingerprint
        self.device = device
        self.class_names: Sequence[str] = tuple(map(str, inner.class_names))
        self.default_min_score = float(inner.default_min_score)
        self.batch_size = int(inner.batch_size)
        self.precision = str(inner.precision)
        self._inner = inner
        if not self.class_names:
            raise ValueError("class_names is empty")
        if not 0 <= self.default_min_score <= 1:
            raise ValueError("default_min_score is not within 0 and 1")
        if not 1 <= self.batch_size <= LARGEST_BATCH:
            raise ValueError(f"batch_size is not within 1 and {LARGEST_BATCH}")

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        wanted_width, wanted_height = self._inner.frame_size(width, height)
        return int(wanted_width), int(wanted_height)

    def detect(self, frames: Tensor) -> list[Detections]:
        found: list[Detections] = self._inner.detect(frames)
        return found


def load_entry_point(
    content: ModelContent, declared: Mapping[str, object], device: str, *, revision: int
) -> EntryPointDetector:
    """Make an object of the declared class and try it. Raises ModelFault with what it lacks or does wrong."""
    declaration = validated(content.name, EntryPointDeclaration, declared)
    module_name, _, class_name = declaration.entry_point.partition(":")
    module, code = _import(content, module_name)
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type):
        raise ModelFault(f"Model {content.name!r}: module {module_name} has no class {class_name}.")
    try:
        inner = kind(content.files.folder, device)
        _check_members(content.name, inner)
        fingerprint = hashlib.sha256(f"{content.fingerprint(revision)} {code}".encode()).hexdigest()
        detector = EntryPointDetector(inner, name=content.name, fingerprint=fingerprint, device=device)
        _try(detector)
    except ModelFault:
        raise
    except Exception as error:  # the model's boundary: its code raises what it likes
        raise _failed(content.name, f"class {class_name} failed when it was made and tried", error) from error
    if hash_model(content.name, content.files).digests != content.digests:
        raise changed_fault(content.name)  # it has read files of its own
    return detector


def _check_members(name: str, inner: object) -> None:
    absent = [member for member in _MEMBERS if not hasattr(inner, member)]
    absent += [member for member in _METHODS if not callable(getattr(inner, member, len))]
    if absent:
        raise ModelFault(f"Model {name!r}: class {type(inner).__name__} has no {', '.join(absent)}.")


def _failed(name: str, what: str, error: BaseException) -> ModelFault:
    told = reason(error) if isinstance(error, Exception) else type(error).__name__
    return ModelFault(f"Model {name!r}: {what}: {told}.")


def _import(content: ModelContent, module_name: str) -> tuple[ModuleType, str]:
    """Return the module, and the hash of its code where the model's own files do not hold it."""
    first = module_name.partition(".")[0]
    try:
        if f"{first}.py" in content.digests or f"{first}/__init__.py" in content.digests:
            return import_beside(content, module_name), ""
        module = importlib.import_module(module_name)
        return module, _code_hash(importlib.import_module(first))
    except ModelFault:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(content.name, f"module {module_name} cannot be imported", error) from error


def _code_hash(package: ModuleType) -> str:
    """Return the SHA-256 of an installed package's Python files, as they were when it was first asked for.

    Python imports a package once: what changes on disk later is not what runs.
    """
    known = vars(package).get("__framebox_code__")
    if known is not None:
        return str(known)
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    if not files and package.__file__ is not None:
        files = [Path(package.__file__)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    vars(package)["__framebox_code__"] = digest.hexdigest()
    return digest.hexdigest()


def _try(detector: EntryPointDetector) -> None:
    """Run a picture twice and in a batch. Raises ModelFault for what `Detector` does not allow."""
    size = detector.frame_size(*TRIED_VIDEO)
    if not (1 <= size[0] <= TRIED_VIDEO[0] and 1 <= size[1] <= TRIED_VIDEO[1]):
        raise ModelFault(
            f"Model {detector.name!r} wants frames of {size[0]} × {size[1]} of a video of "
            f"{TRIED_VIDEO[0]} × {TRIED_VIDEO[1]}; frames are never enlarged."
        )
    picture = golden_picture(*size)
    with torch.inference_mode():
        alone, again = (_detect(detector, picture[None])[0] for _ in range(2))
        together = _detect(detector, torch.stack([picture] * min(2, detector.batch_size)))[-1]
    if not _equal(alone, again):
        raise ModelFault(f"Model {detector.name!r} finds other boxes in the same picture each time.")
    if alone.class_ids.tolist() != together.class_ids.tolist():
        raise ModelFault(f"Model {detector.name!r} finds other boxes in a batch than in one picture alone.")


def _detect(detector: EntryPointDetector, frames: Tensor) -> list[Detections]:
    count, height, width, _ = frames.shape
    return check_batch(
        detector.name,
        detector.detect(frames),
        frame_count=count,
        width=width,
        height=height,
        class_count=len(detector.class_names),
    ).detections


def _equal(one: Detections, other: Detections) -> bool:
    pairs = (
        (one.boxes_xyxy, other.boxes_xyxy),
        (one.scores, other.scores),
        (one.class_ids, other.class_ids),
    )
    return all(torch.equal(first, second) for first, second in pairs)
