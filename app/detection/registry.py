"""Find and load detectors by name: the built-in ones, and the models in the administrator's folder.

Nothing outside that folder is ever loaded. A model there is a file, ``<name>.pt2``, ``.onnx``,
``.torchscript``, ``.pt`` or ``.pth``, which may have a ``<name>.toml`` beside it that says what its output
means (see ``model_formats/declaration.py``); or a folder ``<name>`` with one such file, the files of Hugging
Face, or Python code, and perhaps a ``framebox.toml``.

The next built-in detector is a file of its own and one line in BUILT_IN; the next model format is a file of
its own in ``model_formats/`` and one line in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog

from app.detection.detector import Detector
from app.detection.hog import HogPeopleDetector
from app.detection.measuring import ModelProfile
from app.detection.model_facts import ModelFacts, PrecisionEffect
from app.detection.model_files import (
    CONFIG_FILE,
    DECLARATION_FILE,
    SUFFIXES,
    WEIGHTS_SUFFIX,
    ModelContent,
    find_models,
    json_object,
    read_model,
)
from app.detection.model_formats.entry_point import ENTRY_POINT, load_entry_point
from app.detection.model_formats.huggingface import PROCESSOR_FILE, load_huggingface
from app.detection.model_formats.onnx import load_onnx
from app.detection.model_formats.pt2 import load_pt2
from app.detection.model_formats.torchscript import load_torchscript
from app.detection.model_formats.torchvision_models import load_torchvision
from app.detection.network import LoadedNetwork, Network, NetworkDetector, check_network, run_once
from app.detection.none import NoneDetector
from app.detection.precision import Precision, choose_precision
from app.detection.recognition.pipelines import processor_keys
from app.detection.recognition.recognise import declared_network, recognise
from app.errors import InvalidOption, ModelFault

REVISION = 6  # of all that turns a network's output into boxes; raised when it changes a box
BATCH_SIZE_CPU = 8
BATCH_SIZE_CUDA = 64

_log = structlog.get_logger(__name__)

BUILT_IN: Mapping[str, Callable[[str], Detector]] = MappingProxyType(  # each takes the torch device
    {
        "hog-people": HogPeopleDetector,
        "none": NoneDetector,
    }
)

Loader = Callable[[str, bytes, str], Network]  # name, content, device

# Formats of one file, which holds the whole network.
FORMATS: Mapping[str, Loader] = MappingProxyType(
    {".pt2": load_pt2, ".onnx": load_onnx, ".torchscript": load_torchscript, ".pt": load_torchscript}
)


def load_detector(
    name: str,
    *,
    device: str,
    models_folder: Path | None = None,
    allowed_hashes: Path | None = None,
    precision: Precision = Precision.FLOAT32,
) -> Detector:
    """Load the detector `name` onto a torch device; a model of the folder is checked too. Takes seconds.

    A network on CUDA computes in `precision` unless its file or its declaration says otherwise. With
    `allowed_hashes`, a file that ``sha256sum`` wrote, only model files that are listed there are loaded.

    Raises InvalidOption, listing the known names, for an unknown one, and ModelFault, with advice, for a
    model that is broken, does not say what its output means, or is not listed.
    """
    content = read_model(name, models_folder, allowed_hashes)
    if content is None:
        return load_built_in(name, device, find_models(models_folder))
    detector = load_model(content, device=device, precision=precision)
    check_model(detector)
    return detector


def load_built_in(name: str, device: str, others: Iterable[str] = ()) -> Detector:
    """Return a built-in detector. Raises InvalidOption for an unknown name, listing them and `others`."""
    if name in BUILT_IN:
        return BUILT_IN[name](device)
    names = sorted({*BUILT_IN, *others})
    raise InvalidOption(
        f"There is no model {name!r}. There are: {', '.join(names)}.",
        {"parameter": "model", "allowed": names},
    )


@dataclass(frozen=True, slots=True)
class Tried:
    """What a trial has found out: how to read a network, and perhaps its converted form."""

    declaration: Mapping[str, object] = field(default_factory=dict)
    onnx: bytes | None = None  # an ONNX file, to be run instead of the model's own
    threads: int = 1  # that share a call of a network in ONNX on the CPU


def load_model(
    content: ModelContent, *, device: str, precision: Precision, tried: Tried | None = None
) -> Detector:
    """Load a model of the folder onto a torch device; `check_model` has to follow.

    With `tried`, its network is not recognised again, needs no check, and runs once. Raises ModelFault.
    """
    declared = content.declared()
    if ENTRY_POINT in declared:
        return load_entry_point(content, declared, device, revision=REVISION)
    loaded = _load_network(content, declared, device, tried or Tried())
    detector = NetworkDetector(
        loaded,
        name=content.name,
        fingerprint=content.fingerprint(REVISION),
        device=device,
        batch_size=BATCH_SIZE_CPU if device == "cpu" else BATCH_SIZE_CUDA,
    )
    wanted = choose_precision(device, declared=loaded.precision, setting=precision)
    can_lower = not loaded.network.has_fixed_precision and detector.precision == Precision.FLOAT32
    if wanted != detector.precision and can_lower:
        detector = detector.lowered(wanted)
    if tried is not None:
        run_once(detector)
    if wanted == detector.precision:
        return detector
    if loaded.precision is not None:
        raise ModelFault(
            f"Model {content.name!r} computes in {detector.precision}, as its file has it, but "
            f"precision = {wanted.value!r} is declared. Leave that out of framebox.toml, or export the "
            "network anew: as .pt2 it takes any."
        )
    _log.warning(
        "model keeps its file's precision",
        model=content.name,
        precision=detector.precision,
        setting=wanted.value,
    )
    return detector


def check_model(detector: Detector, *, may_economise: bool = True) -> None:
    """Check a model that has just been loaded for the first time: see `check_network`."""
    if isinstance(detector, NetworkDetector):  # a class checks itself
        if detector.reference is not None:
            check_network(detector.reference, may_economise=may_economise)
        check_network(detector, may_economise=may_economise)


def _load_network(
    content: ModelContent, declared: Mapping[str, object], device: str, tried: Tried
) -> LoadedNetwork:
    files = [content.path.name]
    if content.is_folder:
        files = [file for suffix in SUFFIXES for file in content.named(suffix)]
    has_config = content.is_folder and CONFIG_FILE in content.digests
    # As optimum writes it; other files of networks lie beside the weights of many training runs.
    is_exported = len(files) == 1 and PROCESSOR_FILE in content.digests and not content.named(".safetensors")
    if has_config and not is_exported:
        converted = None
        if tried.onnx is not None:
            converted = load_onnx(content.name, tried.onnx, device, threads=tried.threads)
        return load_huggingface(content, tried.declaration or declared, device, converted)
    if len(files) != 1:
        raise ModelFault(
            f"The folder of model {content.name!r} holds {len(files)} files of {', '.join(SUFFIXES)}, where "
            f'one is wanted, no {CONFIG_FILE}, and in {DECLARATION_FILE} no entry_point = "module:Class".'
        )
    (file,) = files
    if file.endswith(WEIGHTS_SUFFIX):
        return load_torchvision(content, file, declared, device)
    suffix = ".onnx" if tried.onnx is not None else Path(file).suffix
    file_content = content.read(file) if tried.onnx is None else tried.onnx
    if suffix == ".onnx":
        network = load_onnx(content.name, file_content, device, threads=tried.threads)
    else:
        network = FORMATS[suffix](content.name, file_content, device)
    beside: dict[str, object] = {}
    if has_config:
        config, settings = (
            json_object(f"The {file} of model {content.name!r}", content.read(file))
            for file in (CONFIG_FILE, PROCESSOR_FILE)
        )
        beside = processor_keys(config, settings)
    declaration = recognise(content.name, network, tried.declaration or declared, device, beside)
    return declared_network(network, declaration)


def describe_detector(detector: Detector, profile: ModelProfile, runtime: str) -> ModelFacts:
    """Return the facts of a loaded detector with that profile. `runtime`: see `describe_runtime`."""
    effect = profile.get("precision_effect")
    run_by = ""
    declaration: Mapping[str, Any] = {}
    if isinstance(detector, NetworkDetector):
        run_by, declaration = detector.loaded.network.run_by, detector.loaded.declaration
    # No frame exceeds the width of a very long one and the height of a very tall one.
    (width, _), (_, height) = detector.frame_size(2**16, 1), detector.frame_size(1, 2**16)
    return ModelFacts(
        name=detector.name,
        sha256=detector.fingerprint,
        labels=tuple(detector.class_names),
        input_size=(width, height),
        default_min_score=detector.default_min_score,
        device=detector.device.partition(":")[0],
        precision=detector.precision,
        precision_effect=None if effect is None else PrecisionEffect.model_validate(effect),
        batch_size=profile["batch_size"],
        frames_per_second=profile["frames_per_second"],
        memory_bytes=max(profile["host_bytes"], profile["loading_bytes"]),
        device_memory_bytes=profile["device_bytes"],
        run_by=run_by,
        left_out=tuple(declaration.get("left_out", ())),
        assumed=tuple(declaration.get("assumed", ())),
        runtime=f"{runtime}, {profile['piece_size']} a call in {profile['inner_threads'] or 'all'} threads",
    )
