"""Detectors that are Python classes, named in ``framebox.toml``: ``entry_point = "module:Class"``.

The module lies beside the declaration, or belongs to an installed package. The class is constructed with the
model's folder and a torch device, and has what `Detector` asks for, except name, fingerprint and device.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from app.detection.checks import check_batch
from app.detection.detector import Detections
from app.detection.golden import golden_picture
from app.detection.model_files import ModelContent, changed_fault, hash_model, reason
from app.detection.model_formats.declaration import Declared
from app.errors import ModelFault

ENTRY_POINT = "entry_point"
LARGEST_BATCH = 1024
TRIED_VIDEO = (1280, 720)
PACKAGE_PREFIX = "framebox_model_"

_METHODS = ("frame_size", "detect")
_MEMBERS = ("class_names", "default_min_score", "batch_size", "precision", *_METHODS)


class EntryPointDeclaration(Declared):
    """What ``framebox.toml`` says about a Python class."""

    entry_point: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


class EntryPointDetector:
    """The object of a declared class, with the name and the fingerprint of its files. Fulfils Detector."""

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
    """Construct the declared class and try it. Raises ModelFault with what it lacks or does wrong."""
    name = content.name
    declaration = EntryPointDeclaration.of(name, declared)
    module_name, _, class_name = declaration.entry_point.partition(":")
    module, code = _import(content, module_name)
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type):
        raise ModelFault(f"Model {name!r}: module {module_name} has no class {class_name}.")
    try:
        inner = kind(content.folder, device)
        absent = [member for member in _MEMBERS if not hasattr(inner, member)]
        absent += [member for member in _METHODS if not callable(getattr(inner, member, len))]
        if absent:
            what = f"class {type(inner).__name__} has no {', '.join(absent)}"
            raise ModelFault(f"Model {name!r}: {what}.")  # noqa: TRY301 - what the lookup raises is caught here
        fingerprint = hashlib.sha256(f"{content.fingerprint(revision)} {code}".encode()).hexdigest()
        detector = EntryPointDetector(inner, name=name, fingerprint=fingerprint, device=device)
        _check_detector(detector)
    except ModelFault:
        raise
    except Exception as error:  # the model's boundary: its code raises what it likes
        raise _failed(name, f"class {class_name} failed when it was made and tried", error) from error
    if hash_model(name, content.path).digests != content.digests:
        raise changed_fault(name)  # it has read files of its own
    return detector


def _failed(name: str, what: str, error: BaseException) -> ModelFault:
    cause = reason(error) if isinstance(error, Exception) else type(error).__name__
    return ModelFault(f"Model {name!r}: {what}: {cause}.")


def _check_detector(detector: EntryPointDetector) -> None:
    """Run a picture twice and in a batch. Raises ModelFault for what `Detector` does not allow."""
    width, height = detector.frame_size(*TRIED_VIDEO)
    if not (1 <= width <= TRIED_VIDEO[0] and 1 <= height <= TRIED_VIDEO[1]):
        raise ModelFault(
            f"Model {detector.name!r} wants frames of {width} × {height} of a video of "
            f"{TRIED_VIDEO[0]} × {TRIED_VIDEO[1]}; frames are never enlarged."
        )

    def detect(frames: Tensor) -> list[Detections]:
        found = detector.detect(frames)
        return check_batch(detector.name, found, frames, len(detector.class_names))[0]

    picture = golden_picture(width, height)
    with torch.inference_mode():
        (single,), (repeated,) = (detect(picture[None]) for _ in range(2))
        together = detect(torch.stack([picture] * min(2, detector.batch_size)))[-1]
    if not (
        torch.equal(single.boxes_xyxy, repeated.boxes_xyxy)
        and torch.equal(single.scores, repeated.scores)
        and torch.equal(single.class_ids, repeated.class_ids)
    ):
        raise ModelFault(f"Model {detector.name!r} finds other boxes in the same picture each time.")
    if single.class_ids.tolist() != together.class_ids.tolist():
        raise ModelFault(f"Model {detector.name!r} finds other boxes in a batch than in a single picture.")


# ---- its module


def _import(content: ModelContent, module_name: str) -> tuple[ModuleType, str]:
    """Return the module, and the SHA-256 of its package's code if that is not among the model's files."""
    first = module_name.partition(".")[0]
    try:
        if f"{first}.py" in content.digests or f"{first}/__init__.py" in content.digests:
            package = PACKAGE_PREFIX + content.fingerprint(0)[:32]
            if package not in sys.modules:
                # Stays, for imports that the model makes later: one small object for each version of a model.
                sys.meta_path.append(_FolderImporter(content, package))
            return importlib.import_module(f"{package}.{module_name}"), ""
        module = importlib.import_module(module_name)
        installed = importlib.import_module(first)
        # Python imports a package once: what changes on disk after the first call is not what runs.
        code: str | None = vars(installed).get("__framebox_code__")
        if code is None:
            folders = [Path(folder) for folder in getattr(installed, "__path__", ())]
            files = sorted(file for folder in folders for file in folder.rglob("*.py"))
            if not files and installed.__file__ is not None:
                files = [Path(installed.__file__)]
            digest = hashlib.sha256()
            for file in files:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            code = digest.hexdigest()
            vars(installed)["__framebox_code__"] = code
    except ModelFault:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(content.name, f"module {module_name} cannot be imported", error) from error
    return module, code


class _FolderImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and runs the modules of one model's folder, from the very bytes that were hashed.

    They are a package named after their content: two models may both have a ``detector.py``, and a changed
    file is imported anew. Inside it, neighbours are imported relatively (``from .postprocess import merge``).
    Writes no bytecode into the folder, and reads none.
    """

    def __init__(self, content: ModelContent, package: str) -> None:
        self._content = content
        self._package = package

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - only the name decides
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == self._package:
            return ModuleSpec(fullname, self, is_package=True)
        file = self._file(fullname)
        if file is None:
            return None
        origin = str(self._content.folder / file)
        spec = ModuleSpec(fullname, self, origin=origin, is_package=file.endswith("/__init__.py"))
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        file = self._file(module.__name__)
        if file is not None:
            code = compile(self._content.read(file), str(module.__file__), "exec", dont_inherit=True)
            exec(code, vars(module))  # noqa: S102 - running the administrator's code is what this is for

    def _file(self, fullname: str) -> str | None:
        if not fullname.startswith(f"{self._package}."):
            return None
        path = fullname.removeprefix(f"{self._package}.").replace(".", "/")
        candidates = (f"{path}/__init__.py", f"{path}.py")
        return next((file for file in candidates if file in self._content.digests), None)
