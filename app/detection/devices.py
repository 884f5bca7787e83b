"""Which devices there are for models, whether they can be used together, and making them ready."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class UnusableDevice(Exception):
    """A device that is asked for is not there, fails, or gives other boxes than another one."""


def choose_devices(named: Sequence[str]) -> tuple[str, ...]:
    """Return the torch devices to hold models, ``cpu`` or ``cuda:N``: those named, or the best there are.

    All of them give the same boxes: if none is named, the CUDA devices of the first one's make, or the CPU.
    Raises UnusableDevice for one that is not there or named twice, and for devices of different makes.
    """
    present = _cuda_devices()
    if not named:
        return tuple(device for device in present if _make(device) == _make(present[0])) or ("cpu",)
    chosen = tuple(_plain_name(name, present) for name in named)
    twice = next((device for device in chosen if chosen.count(device) > 1), None)
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

    CUDA, cuBLAS and cuDNN take host memory that no model's end gives back: after this call it is there, and
    not taken for the first model's. Raises UnusableDevice if the device cannot compute.
    """
    if device == "cpu":
        return
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    try:
        pictures = torch.zeros((1, 3, 32, 32), device=device)
        features = torch.nn.functional.conv2d(pictures, torch.zeros((8, 3, 3, 3), device=device))
        (features.flatten(2) @ features.flatten(2).mT).sum().item()
    except RuntimeError as error:
        raise UnusableDevice(f"{device} ({_make(device)}) fails: {error}") from error


def memory_bytes(device: str) -> int | None:
    """Return how much memory a device has of its own; None for the CPU."""
    return None if device == "cpu" else torch.cuda.mem_get_info(device)[1]
