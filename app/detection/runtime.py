"""What computes a model's boxes, beside the model: it may decide their last digits."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

_LIBRARIES = ("torch", "torchvision", "onnxruntime", "transformers", "numpy")


def describe_runtime(device: str, *, threads: int) -> str:
    """Return the libraries' versions, and of `device`, as torch names it, what may differ between two.

    `threads` is how many a model on the CPU computes with: sums are added up in as many pieces.
    """
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    if device.startswith("cuda"):
        return f"{libraries}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name(device)}"
    return f"{libraries}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads"


@cache  # each look goes through all folders of sys.path, and every job asks
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
