"""The administrator's models: what lies in one folder, and nothing else, is ever loaded.

A model is a file, ``<name>.pt2``, ``.onnx``, ``.torchscript`` or ``.pt``, or a folder ``<name>`` that holds
one such file and, where the file does not say what its output means, a ``framebox.toml`` (see
``declaration.py``). A ``<name>.toml`` beside the file does as well.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from app.detection.declaration import read_declaration
from app.detection.detector import Detector
from app.detection.network import Network, NetworkDetector, NetworkRules, check_at_load
from app.detection.onnx import load_onnx
from app.detection.pt2 import load_pt2
from app.detection.torchscript import load_torchscript
from app.errors import ModelFault

REVISION = 2  # of all that turns a network's output into boxes; raised when it changes a box
BATCH_SIZE_CPU = 8
BATCH_SIZE_CUDA = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
DECLARATION_FILE = "framebox.toml"

Loader = Callable[[str, bytes, str], tuple[Network, Mapping[str, object]]]  # name, content, device

FORMATS: Mapping[str, Loader] = MappingProxyType(
    {".pt2": load_pt2, ".onnx": load_onnx, ".torchscript": load_torchscript, ".pt": load_torchscript}
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies."""

    network: Path
    declaration: Path  # may be absent


def find_models(folder: Path) -> dict[str, ModelFiles]:
    """Return the models of `folder` by name. Opens none of them.

    Raises ModelFault if two have the same name. What is no model is passed over: other files, names that are
    not plain, and links that lead out of the folder.
    """
    root = folder.resolve()
    found: dict[str, ModelFiles] = {}
    for path in sorted(root.iterdir()):
        files = _model_at(path)
        if files is None or not files.network.resolve().is_relative_to(root):
            continue
        name = path.name if path.is_dir() else path.stem
        if not NAME.fullmatch(name):
            continue
        if name in found:
            raise ModelFault(f"Two models are called {name!r}; rename one.")
        found[name] = files
    return found


def _model_at(path: Path) -> ModelFiles | None:
    if path.is_dir():
        networks = [file for file in sorted(path.iterdir()) if file.suffix in FORMATS and file.is_file()]
        return ModelFiles(networks[0], path / DECLARATION_FILE) if len(networks) == 1 else None
    if path.suffix in FORMATS and path.is_file():
        return ModelFiles(path, path.with_suffix(".toml"))
    return None


def load_model(name: str, files: ModelFiles, device: str) -> Detector:
    """Load a model onto a device and check it. Raises ModelFault with what is wrong and what to write.

    The files are read once, so that what is hashed is what runs, whatever becomes of them.
    """
    content = files.network.read_bytes()
    declared = files.declaration.read_bytes() if files.declaration.is_file() else b""
    try:
        overrides = tomllib.loads(declared.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelFault(f"The declaration of model {name!r} is no TOML: {error}.") from error
    network, metadata = FORMATS[files.network.suffix](name, content, device)
    declaration = read_declaration(name, metadata, overrides, network.takes)
    detector = NetworkDetector(
        network,
        NetworkRules(
            fitting=declaration.input_size,
            pixels=declaration.pixels,
            reading=declaration.reading,
            batch=network.takes.batch or declaration.batch,
        ),
        name=name,
        fingerprint=_fingerprint(content, declared),
        class_names=declaration.labels,
        default_min_score=declaration.min_score,
        device=device,
        batch_size=BATCH_SIZE_CPU if device == "cpu" else BATCH_SIZE_CUDA,
    )
    check_at_load(detector)
    return detector


def _fingerprint(*contents: bytes) -> str:
    digest = hashlib.sha256(f"revision {REVISION}".encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
