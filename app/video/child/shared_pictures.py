"""The ring, as the child has it."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from app.video.protocol import ring

_MADV_POPULATE_WRITE: Final = 23  # since Linux 5.14


class SharedPictures:
    """The memory that the child shares with the engine. There are no pages behind it before it is used.

    A page that comes because it is written to costs a fault, half the time that it takes to fill the page.
    Those of a whole picture are asked for at once.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        memory = np.frombuffer(mapping, dtype=np.uint8)
        self._mapping = mapping
        self._populated_end = ring.HEADER_BYTES
        self.counters: npt.NDArray[np.uint64] = ring.counters(memory)
        self.pixels: npt.NDArray[np.uint8] = memory[ring.HEADER_BYTES :]  # (ring_bytes,)

    def prepare(self, end: int) -> None:
        """Have pages behind `pixels` up to byte `end`."""
        start, end = self._populated_end, -(-(ring.HEADER_BYTES + end) // mmap.PAGESIZE) * mmap.PAGESIZE
        if end > start:
            self._populated_end = end
            with suppress(OSError):  # then they come one by one
                self._mapping.madvise(_MADV_POPULATE_WRITE, start, end - start)
