"""Copy frames to a CUDA device while the model works on another batch.

The thread that submits frames copies them, in a stream beside the model's, so that neither the device nor the
thread that runs the model waits for them. The device itself fetches frames in pinned memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device of this process

_log = structlog.get_logger(__name__)


class FrameCopies:
    """Copies frames to one CUDA device, in a stream of its own."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, frames: Tensor) -> Tensor:
        """Return a copy of `frames`, (n, height, width, 3) uint8 in host memory, on the device.

        Waits for the copy: the caller may reuse `frames` afterwards. Any thread may call it.
        Raises the device's error, torch.OutOfMemoryError if the frames do not fit.
        """
        with torch.cuda.stream(self._stream):
            on_device = frames.to(self._device, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record()
        arrived.synchronize()
        return on_device

    def receive(self, frames: Tensor) -> None:
        """Note that the calling thread is about to compute with `frames`: what `send` returned, or others."""
        if frames.is_cuda:  # else the copies' stream could reuse their memory while the model reads it
            frames.record_stream(torch.cuda.current_stream(self._device))


def copies_to(device: str) -> FrameCopies | None:
    """Return what copies frames to `device`; None if it computes in host memory."""
    return FrameCopies(device) if device.startswith("cuda") else None


class Pinning:
    """Pins memory, which CUDA devices then read by themselves, at least twice as fast.

    `runtime` has the functions of CUDA's runtime: ``torch.cuda.cudart()``.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def pin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Pin `memory`, which stays in RAM as a whole for as long as it or a view of it lives.

        `memory` begins at a page's start. If it cannot be pinned, copies are slower and otherwise the same.
        """
        address = memory.ctypes.data
        register = self._runtime.cudaHostRegister
        status = _in_a_thread(lambda: register(address, memory.nbytes, _PORTABLE))
        if status != self._runtime.cudaError.success:
            reason = self._runtime.cudaGetErrorString(status)
            _log.warning("memory for frames is not pinned", reason=reason)
            return
        unregister = self._runtime.cudaHostUnregister
        unpin = weakref.finalize(memory, _in_a_thread, lambda: unregister(address))
        # Not at the process's end: CUDA may be gone by then, and gives back everything by itself.
        unpin.atexit = False


def pinning_for(devices: Sequence[str]) -> Pinning | None:
    """Return what pins memory for `devices`; None if none of them would read it by itself."""
    if all(device == "cpu" for device in devices):
        return None
    return Pinning(torch.cuda.cudart())  # type: ignore[no-untyped-call]


def _in_a_thread(call: Callable[[], Any]) -> Any:
    """Call `call` in a thread of its own and return its result.

    CUDA remembers a failed call for the thread that made it, and torch takes that for a fault of whatever the
    same thread does next.
    """
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), name="pin-memory")
    thread.start()
    thread.join()
    return answers[0]
