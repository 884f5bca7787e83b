"""How frames get onto a CUDA device: each batch while the model is at another, and without a detour.

Whoever brings frames copies them, in a stream beside the model's, so that neither the device nor the thread
that runs the model waits for them. Frames in pinned memory are fetched by the device itself.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device of this process

_log = logging.getLogger(__name__)


class FrameCopies(Protocol):
    """The way of frames to one device."""

    def send(self, frames: Tensor) -> Tensor:
        """Return `frames`, (n, height, width, 3) uint8 in host memory, as they lie on the device.

        Waits until they do: the caller may do with `frames` what it likes then. Any thread may call it.
        Raises what the device says, torch.OutOfMemoryError where they do not fit.
        """
        ...

    def receive(self, frames: Tensor) -> None:
        """Say that the calling thread goes on to compute with `frames`: what `send` returned, or others."""
        ...


class CudaFrameCopies:
    """Copies in a stream of their own. Fulfils FrameCopies."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, frames: Tensor) -> Tensor:
        with torch.cuda.stream(self._stream):
            on_device = frames.to(self._device, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record()
        arrived.synchronize()
        return on_device

    def receive(self, frames: Tensor) -> None:
        if frames.is_cuda:  # else the copies' stream could take their memory anew while the model reads it
            frames.record_stream(torch.cuda.current_stream(self._device))


def copies_to(device: str) -> FrameCopies | None:
    """Return the way to `device`; None where it computes in host memory."""
    return CudaFrameCopies(device) if device.startswith("cuda") else None


class Pinning:
    """Pins memory: CUDA devices read it by themselves then, at twice the pace or more.

    `runtime` has the functions of CUDA's runtime: ``torch.cuda.cudart()``.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def pin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Pin `memory`, all of which is in RAM from then on, for as long as it or a view of it lives.

        `memory` begins at a page's start. Where it cannot be had, copies are slower, and else the same.
        """
        address = memory.ctypes.data
        register = self._runtime.cudaHostRegister
        status = _in_a_thread(lambda: register(address, memory.nbytes, _PORTABLE))
        if status != self._runtime.cudaError.success:
            reason = self._runtime.cudaGetErrorString(status)
            _log.warning("memory for frames is not pinned", extra={"reason": reason})
            return
        # Not at the process's end: CUDA may be gone by then, and gives back everything by itself.
        weakref.finalize(memory, self._unpin, address).atexit = False

    def _unpin(self, address: int) -> None:
        _in_a_thread(lambda: self._runtime.cudaHostUnregister(address))


def pinning_for(devices: Sequence[str]) -> Pinning | None:
    """Return what pins memory for `devices`; None where none of them would read it by itself."""
    if all(device == "cpu" for device in devices):
        return None
    return Pinning(torch.cuda.cudart())  # type: ignore[no-untyped-call]


def _in_a_thread(call: Callable[[], Any]) -> Any:
    """Return what `call` does, called in a thread of its own.

    CUDA remembers a call that failed for the thread that made it, and torch takes that for a fault of
    whatever the same thread does next.
    """
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), name="pin-memory")
    thread.start()
    thread.join()
    return answers[0]
