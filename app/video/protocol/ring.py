"""The ring: anonymous memory that host and child share, with three counters and then pictures.

It is sealed, so that a child cannot shrink it while the host reads it. It ends with the last of the two
processes.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

HEADER_BYTES = 4096
READ_COUNTER = 0  # packets that the child has read in its life
FED_COUNTER = 1  # packets of the current request given to the decoder
OPENING_COUNTER = 2  # the child's processor time in ns when it began to open a video; 0 otherwise


def counters(memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return memory[:24].view(np.uint64)


def create_memory(ring_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
    """Return a descriptor that the caller must close, and the memory, (HEADER_BYTES + ring_bytes,) uint8."""
    descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, HEADER_BYTES + ring_bytes)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        memory = mmap.mmap(descriptor, HEADER_BYTES + ring_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, np.frombuffer(memory, dtype=np.uint8)
