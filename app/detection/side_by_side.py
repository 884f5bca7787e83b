"""Threads that each compute a part of a batch: how a detector uses the cores of a CPU.

Threads that share every single step of a computation wait for one another after it. That costs much on idle
cores, and a multiple of the work on busy ones, such as those that decode. YOLOX-Nano on two cores that also
decoded: 44 frames a second with shared steps, 61 with half of each batch per thread; in ONNX 77 and 100.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

START_SECONDS = 60.0
STACK_BYTES = 2 * 1024 * 1024  # the usual 8 MiB count in full where a process limits what it may reserve

Part = TypeVar("Part")
Result = TypeVar("Result")


class SideBySide:
    """As many threads as torch would compute with, each of which computes with one.

    They live as long as this object, because libraries keep what they have prepared for each thread.
    """

    def __init__(self, name: str) -> None:
        """Start the threads, as many as the calling thread would use: `torch.get_num_threads`."""

        def use_one_thread() -> None:
            torch.get_num_threads()  # the first call takes the common number, and would undo the next line
            torch.set_num_threads(1)

        self.count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, name, initializer=use_one_thread)
        all_begun = threading.Barrier(self.count)
        usual_bytes = threading.stack_size(STACK_BYTES)
        try:
            wait([self._pool.submit(all_begun.wait, START_SECONDS) for _ in range(self.count)])
        finally:
            threading.stack_size(usual_bytes)
        # Each thread has its own number, but the last one that was set is also where new threads begin.
        torch.set_num_threads(self.count)

    def run(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Return the result of `work` for each part. Raises what it raises for one, once all have ended."""

        def work_on(part: Part) -> Result:
            with torch.inference_mode():  # it applies to one thread only
                return work(part)

        futures = [self._pool.submit(work_on, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]
