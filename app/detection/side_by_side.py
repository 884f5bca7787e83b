"""Threads that compute side by side, each alone: how a detector uses the cores of a CPU.

Threads that share every single step of a computation wait for one another after it, which costs much on idle
cores and a multiple of the work on busy ones, such as those that decode. YOLOX-Nano on two cores, while they
decoded: 44 frames a second with the steps shared, 61 with half of each batch a thread; in ONNX 77 and 100.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

START_SECONDS = 60.0
STACK_BYTES = 2 * 1024 * 1024  # the usual 8 MiB count as taken where a process limits what it may reserve

Part = TypeVar("Part")
Result = TypeVar("Result")


class SideBySide:
    """As many threads as torch would compute with, each of which computes with one.

    They end with this object. They are kept until then, because libraries remember for each thread what they
    have prepared.
    """

    def __init__(self, name: str) -> None:
        """The number of threads is that of the calling one: `torch.get_num_threads`."""
        self.count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, name, initializer=_compute_alone)
        all_begun = threading.Barrier(self.count)
        usual_bytes = threading.stack_size(STACK_BYTES)
        try:
            wait([self._pool.submit(all_begun.wait, START_SECONDS) for _ in range(self.count)])
        finally:
            threading.stack_size(usual_bytes)
        # A thread's number is its own, but also what threads that are new to torch begin with.
        torch.set_num_threads(self.count)

    def run(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Return what `work` makes of each part. Raises what it raises for one, once all have ended."""
        futures = [self._pool.submit(_without_gradients, work, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread's first look takes what all have, and would undo what is set before
    torch.set_num_threads(1)


def _without_gradients(work: Callable[[Part], Result], part: Part) -> Result:
    with torch.inference_mode():  # each thread's own affair
        return work(part)
