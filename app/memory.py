"""Host memory of this process: what it takes, what it may take, and giving back what lies free.

A process that loads and drops models pays for the C library's habits. Each thread that allocates gets an
arena of its own, and what one thread's arena holds free serves no other: the engine with three models took
1223 MiB in eight arenas, and 753 MiB in one, at the same speed.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_KEPT_BYTES = 1 << 30
_LARGE_BYTES = 32 * 1024 * 1024  # larger pieces are the system's own, each, and leave no holes
_APART_BYTES = 64 * 1024  # … and these, while a model loads
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): VmHWM begins anew with what is resident now


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a process takes, in bytes."""

    resident: int  # memory shared with others included
    shared: int  # of that, memory that other processes have too, such as the rings of decoded frames
    peak_resident: int  # since the start, or the last `forget_peak`
    private_reserved: int  # writable and its own, touched or not: what `limit_private_bytes` limits

    @property
    def own(self) -> int:
        """What this process alone is charged with."""
        return self.resident - self.shared


def use_one_arena() -> None:
    """Have all threads allocate from one arena. Call before threads are started; a no-op without glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed for the next one who asks; a no-op without glibc.

    Else the tensors of each step of a network are fetched from the system, page by page and zeroed, and given
    back after it: 2000 to 3000 page faults a frame with YOLOX-Nano, an eighth of its processor time. The peak
    stays the same. `give_back_free_memory` still gives all of it back.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)  # 128 KiB and fixed, once the other is set


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Have what is allocated during the block go back to the system when it is freed; a no-op without glibc.

    For weights, which stay while other memory comes and goes beside them. Taken from the heap, they leave
    holes that `limit_private_bytes` goes on counting: after six networks of 100 to 200 MB had come and gone,
    the heap was 704 MiB large, and 151 MiB of it in use.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _APART_BYTES)
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back_free_memory() -> None:
    """Return what lies free in the allocator to the system; a no-op without glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_use() -> MemoryUse:
    """Return what this process takes now."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    kib = {name: int(value.split()[0]) for name, value in fields.items() if value.endswith("kB")}
    return MemoryUse(
        resident=1024 * kib["VmRSS"],
        shared=1024 * kib["RssShmem"],
        peak_resident=1024 * kib["VmHWM"],
        private_reserved=1024 * kib["VmData"],
    )


def forget_peak() -> None:
    """Begin a new peak, where the system allows it; elsewhere peaks stay those since the start."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")


def limit_private_bytes(budget_bytes: int) -> None:
    """Let this process allocate until it takes `budget_bytes`, and no further: then allocations fail.

    A failed allocation can be answered, by a smaller batch or by a job's end; the kernel's choice of whom to
    kill cannot. Children inherit the limit. Memory that is reserved and never touched, such as most of a
    thread's stack, counts too, so that the process stays below its budget by as much as it reserves.
    """
    use = memory_use()
    allowed = use.private_reserved + max(0, budget_bytes - use.own)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
