"""The administrator's models: what lies in one folder, and nothing else, is ever loaded.

A model is a file, ``<name>.pt2``, ``.onnx``, ``.torchscript``, ``.pt`` or ``.pth``, with perhaps a
``<name>.toml`` beside it that says what its output means (see ``declaration.py``); or a folder ``<name>``
that holds one such file, the files of Hugging Face, or Python code, and perhaps a ``framebox.toml``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from app.detection.allowed_hashes import check_allowed
from app.detection.declaration import read_declaration
from app.detection.detector import Detector
from app.detection.entry_point import ENTRY_POINT, load_entry_point
from app.detection.huggingface import CONFIG_FILE, load_huggingface
from app.detection.model_content import DECLARATION_FILE, ModelContent, ModelFiles, hash_model
from app.detection.network import (
    LoadedNetwork,
    Network,
    NetworkDetector,
    NetworkRules,
    check_at_load,
    check_lowered,
)
from app.detection.onnx import OnnxNetwork, load_onnx
from app.detection.precision import Precision, choose_precision
from app.detection.pt2 import load_pt2
from app.detection.torchscript import TorchScriptNetwork, load_torchscript
from app.detection.torchvision_models import load_torchvision
from app.errors import ModelFault

REVISION = 4  # of all that turns a network's output into boxes; raised when it changes a box
BATCH_SIZE_CPU = 8
BATCH_SIZE_CUDA = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
WEIGHTS_SUFFIX = ".pth"

_log = logging.getLogger(__name__)

Loader = Callable[[str, bytes, str], tuple[Network, Mapping[str, object]]]  # name, content, device

# Formats of one file, which holds the whole network.
FORMATS: Mapping[str, Loader] = MappingProxyType(
    {".pt2": load_pt2, ".onnx": load_onnx, ".torchscript": load_torchscript, ".pt": load_torchscript}
)
SUFFIXES = (*FORMATS, WEIGHTS_SUFFIX)

# Networks that compute in what their files say. TorchScript has an autocast of its own, which its first call
# settles for good.
FIXED_NETWORKS = (OnnxNetwork, TorchScriptNetwork)


def find_models(folder: Path) -> dict[str, ModelFiles]:
    """Return the models of `folder` by name. Opens none of them.

    Raises ModelFault if two have the same name. What is no model is passed over: other files, names that are
    not plain, and links that lead out of the folder.
    """
    root = folder.resolve()
    found: dict[str, ModelFiles] = {}
    for path in sorted(root.iterdir()):
        if not _is_model(path) or not path.resolve().is_relative_to(root):
            continue
        name = path.name if path.is_dir() else path.stem
        if not NAME.fullmatch(name):
            continue
        if name in found:
            raise ModelFault(f"Two models are called {name!r}; rename one.")
        found[name] = ModelFiles(root, path)
    return found


def _is_model(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in SUFFIXES and path.is_file()
    if any((path / file).is_file() for file in (DECLARATION_FILE, CONFIG_FILE)):
        return True
    return len([file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()]) == 1


def load_model(
    name: str,
    files: ModelFiles,
    device: str,
    *,
    allowed_hashes: Path | None = None,
    precision: Precision = Precision.FLOAT32,
) -> Detector:
    """Load a model onto a device and check it. Raises ModelFault with what is wrong and what to write.

    A network on CUDA computes in `precision` unless its file or its declaration says otherwise.
    With `allowed_hashes`, a file that ``sha256sum`` wrote, only what is listed there is loaded.
    """
    content = hash_model(name, files)
    if allowed_hashes is not None:
        check_allowed(content, allowed_hashes)
    declared = content.declared()
    if ENTRY_POINT in declared:
        return load_entry_point(content, declared, device, revision=REVISION)
    loaded = _load_network(content, declared, device)
    detector = NetworkDetector(
        loaded.network,
        loaded.rules,
        name=name,
        fingerprint=content.fingerprint(REVISION),
        class_names=loaded.class_names,
        default_min_score=loaded.min_score,
        device=device,
        batch_size=BATCH_SIZE_CPU if device == "cpu" else BATCH_SIZE_CUDA,
    )
    check_at_load(detector)
    detector.use_threads()
    wanted = choose_precision(device, declared=loaded.precision, setting=precision)
    return _in_precision(detector, loaded, wanted)


def _in_precision(detector: NetworkDetector, loaded: LoadedNetwork, wanted: Precision) -> NetworkDetector:
    """Return the detector as it computes in `wanted`, or as it is where its file leaves no choice.

    Raises ModelFault where that contradicts its declaration, or it is of no use in so few bits.
    """
    if wanted == detector.precision:
        return detector
    if isinstance(loaded.network, FIXED_NETWORKS) or detector.precision != Precision.FLOAT32:
        if loaded.precision is not None:
            raise ModelFault(
                f"Model {detector.name!r} computes in {detector.precision}, as its file has it, but "
                f"precision = {wanted.value!r} is declared. Leave that out of framebox.toml, or export the "
                "network anew: as .pt2 it takes any."
            )
        _log.warning(
            "model keeps its file's precision",
            extra={"model": detector.name, "precision": detector.precision, "setting": wanted.value},
        )
        return detector
    lowered = detector.lowered(wanted)
    check_lowered(lowered)
    return lowered


def _load_network(content: ModelContent, declared: Mapping[str, object], device: str) -> LoadedNetwork:
    if content.files.is_folder and CONFIG_FILE in content.digests:
        return load_huggingface(content, declared, device)
    file = _network_file(content)
    if file.endswith(WEIGHTS_SUFFIX):
        return load_torchvision(content, file, declared, device)
    network, metadata = FORMATS[Path(file).suffix](content.name, content.read(file), device)
    declaration = read_declaration(content.name, metadata, declared, network.takes)
    rules = NetworkRules(
        fitting=declaration.input_size,
        pixels=declaration.pixels,
        reading=declaration.reading,
        batch=network.takes.batch or declaration.batch,
    )
    return LoadedNetwork(network, rules, declaration.labels, declaration.min_score, declaration.precision)


def _network_file(content: ModelContent) -> str:
    if not content.files.is_folder:
        return content.files.path.name
    files = [file for suffix in SUFFIXES for file in content.named(suffix)]
    if len(files) == 1:
        return files[0]
    raise ModelFault(
        f"The folder of model {content.name!r} holds {len(files)} files of {', '.join(SUFFIXES)}, where one "
        f'is wanted, no {CONFIG_FILE}, and in {DECLARATION_FILE} no entry_point = "module:Class".'
    )
