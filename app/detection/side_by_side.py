"""How a detector uses the cores of a CPU: threads that each compute a piece of a batch.

Threads that share every single step of a computation wait for one another after it. That costs much on idle
cores, and a multiple of the work on busy ones, such as those that decode. YOLOX-Nano on two cores that also
decoded: 44 frames a second with shared steps, 61 with frames of its own per thread; in ONNX 77 and 100.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch

START_SECONDS = 60.0
STACK_BYTES = 2 * 1024 * 1024  # the usual 8 MiB count in full where a process limits what it may reserve

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How batches are divided among threads. All but `callers` may decide the last digit of a box."""

    batch_size: int  # frames that a decoder delivers together
    piece_size: int  # frames in one call of the detector; the last piece of a batch may be smaller
    callers: int = 1  # threads that call the detector side by side
    inner_threads: int | None = None  # of torch, in each call; None: as many as the caller of a device has


class SideBySide:
    """Threads that each call something, with a number of torch's own threads.

    They live as long as this object, because libraries keep what they have prepared for each thread.
    """

    def __init__(self, name: str, *, count: int | None = None, inner_threads: int = 1) -> None:
        """Start `count` threads, by default as many as the calling thread would use."""

        def set_threads() -> None:
            torch.get_num_threads()  # the first call takes the common number, and would undo the next line
            torch.set_num_threads(inner_threads)

        own_count = torch.get_num_threads()
        self.count = count or own_count
        self._pool = ThreadPoolExecutor(self.count, name, initializer=set_threads)
        all_begun = threading.Barrier(self.count)
        usual_bytes = threading.stack_size(STACK_BYTES)
        try:
            wait([self._pool.submit(all_begun.wait, START_SECONDS) for _ in range(self.count)])
        finally:
            threading.stack_size(usual_bytes)
        # Each thread has its own number, but the last one that was set is also where new threads begin.
        torch.set_num_threads(own_count)

    def run(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Return the result of `work` for each part, which threads take one by one.

        Raises what it raises for one, once all have ended.
        """

        def work_on(part: Part) -> Result:
            with torch.inference_mode():  # it applies to one thread only
                return work(part)

        futures = [self._pool.submit(work_on, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]
