"""Which devices there are for models, whether they can be used together, and making them ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from app.detection.detector import DeviceLost

Ask = Callable[[str], Exception | None]


class UnusableDevice(Exception):
    """A device that is asked for is not there, fails, or gives other boxes than another one."""


def choose_devices(named: Sequence[str]) -> tuple[str, ...]:
    """Return the torch devices to hold models, ``cpu`` or ``cuda:N``: those named, or the best there are.

    All of them give the same boxes: if none is named, the CUDA devices of the first one's make, or the CPU.
    The CPU may be named several times, for as many hosts. Raises UnusableDevice for one that is not there,
    for a GPU that is named twice, and for devices of different makes.
    """
    present = _cuda_devices()
    if not named:
        return tuple(device for device in present if _make(device) == _make(present[0])) or ("cpu",)
    chosen = tuple(_plain_name(name, present) for name in named)
    twice = next((device for device in chosen if device != "cpu" and chosen.count(device) > 1), None)
    if twice is not None:
        raise UnusableDevice(f"{twice} is named twice")
    other = next((device for device in chosen if _make(device) != _make(chosen[0])), None)
    if other is not None:
        raise UnusableDevice(
            f"{chosen[0]} ({_make(chosen[0])}) and {other} ({_make(other)}) round differently, so that a "
            "video's boxes would depend on which of them took which frames; name devices of one make"
        )
    return chosen


def _plain_name(name: str, present: Sequence[str]) -> str:
    plain = "cuda:0" if name == "cuda" else name
    if plain != "cpu" and plain not in present:
        there = ", ".join(["cpu", *present])
        raise UnusableDevice(f"there is no device {name!r}; torch {torch.__version__} finds {there} here")
    return plain


def _cuda_devices() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def _make(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def make_ready(device: str) -> None:
    """Load what a device's first computation needs, and settle on algorithms that always add up alike.

    float32 is what it says: torch would round it to TF32's 11 bits for convolutions, so that boxes were
    neither those of a CPU nor the same in batches of other sizes.

    CUDA, cuBLAS and cuDNN take host memory that no model's end gives back: after this call it is there, and
    not taken for the first model's. Raises UnusableDevice if the device cannot compute.
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
    """Return the error that a device answers everything with from now on; None if it is well.

    torch has a class for such errors, but libraries that compute there tell of them in words of their own.
    """
    if device == "cpu":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return error
    return None


def why_lost(error: BaseException, devices: Iterable[str], ask: Ask = sticking_fault) -> Exception | None:
    """Return why one of `devices` is lost, if that is what `error` comes of; None if all are well.

    `ask` says what is wrong with a device.
    """
    if isinstance(error, torch.AcceleratorError | DeviceLost):
        return error
    fault = next((fault for fault in map(ask, devices) if fault is not None), None)
    if fault is not None:
        fault.__cause__ = error
    return fault


def memory_bytes(device: str) -> int | None:
    """Return how much memory a device has of its own; None for the CPU."""
    return None if device == "cpu" else torch.cuda.mem_get_info(device)[1]
