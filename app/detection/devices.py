"""Which devices there are for models, whether they can be used together, and making them ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from app.detection.detector import DeviceLost

FaultFinder = Callable[[str], Exception | None]  # takes a device; see `sticking_fault`

_LIBRARIES = ("torch", "torchvision", "onnxruntime", "transformers", "numpy")


class UnusableDevice(Exception):
    """A requested device is not there, fails, or gives other boxes than another one."""


def choose_devices(named: Sequence[str]) -> tuple[str, ...]:
    """Return the torch devices to hold models, ``cpu`` or ``cuda:N``: those named, or the best there are.

    All of them give the same boxes: if none is named, the CUDA devices of the same make as the first, or the
    CPU. The CPU may be named several times, for several hosts. Raises UnusableDevice for a device that is not
    there, for a GPU that is named twice, and for devices of different makes.
    """
    present = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if not named:
        return tuple(device for device in present if _make(device) == _make(present[0])) or ("cpu",)
    chosen = tuple("cuda:0" if name == "cuda" else name for name in named)
    for name, device in zip(named, chosen, strict=True):
        if device != "cpu" and device not in present:
            there = ", ".join(["cpu", *present])
            raise UnusableDevice(f"there is no device {name!r}; torch {torch.__version__} finds {there} here")
    for device in chosen:
        if device != "cpu" and chosen.count(device) > 1:
            raise UnusableDevice(f"{device} is named twice")
    other = next((device for device in chosen if _make(device) != _make(chosen[0])), None)
    if other is not None:
        raise UnusableDevice(
            f"{chosen[0]} ({_make(chosen[0])}) and {other} ({_make(other)}) round differently, so that a "
            "video's boxes would depend on which of them took which frames; name devices of one make"
        )
    return chosen


def _make(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def make_ready(device: str) -> None:
    """Load what a device's first computation needs, and choose algorithms that always add up alike.

    float32 means float32: by default torch rounds it to TF32's 11 bits for convolutions, so that boxes would
    neither equal those of a CPU nor those in batches of other sizes.

    CUDA, cuBLAS and cuDNN take host memory that unloading a model does not give back: it is allocated here,
    so that it does not count as the first model's. Raises UnusableDevice if the device cannot compute.
    """
    if device == "cpu":
        return
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        pictures = torch.zeros((1, 3, 32, 32), device=device)
        features = torch.nn.functional.conv2d(pictures, torch.zeros((8, 3, 3, 3), device=device))
        (features.flatten(2) @ features.flatten(2).mT).sum().item()
    except RuntimeError as error:
        raise UnusableDevice(f"{device} ({_make(device)}) fails: {error}") from error


def sticking_fault(device: str) -> Exception | None:
    """Return the error with which a device answers every call from now on, or None if it is well.

    torch has a class for such errors, but libraries that compute there report them in words of their own.
    """
    if device == "cpu":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return error
    return None


def why_lost(
    error: BaseException, devices: Iterable[str], find_fault: FaultFinder = sticking_fault
) -> Exception | None:
    """Return why one of `devices` is lost, if that caused `error`; None if all are well."""
    if isinstance(error, torch.AcceleratorError | DeviceLost):
        return error
    fault = next((fault for fault in map(find_fault, devices) if fault is not None), None)
    if fault is not None:
        fault.__cause__ = error
    return fault


def memory_bytes(device: str) -> int | None:
    """Return how much memory a device has of its own; None for the CPU."""
    return None if device == "cpu" else torch.cuda.mem_get_info(device)[1]


def describe_runtime(device: str, *, threads: int) -> str:
    """Return what, beside a model, may decide the last digits of its boxes: libraries and the kind of device.

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
