"""Host memory of this process: how much it uses and may use, and how the allocator treats free memory.

By default, glibc gives each thread that allocates an arena of its own, and free memory in one arena is of no
use to other threads: a process with three models took 1223 MiB in eight arenas, and 753 MiB in one, at the
same speed.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.libc import LIBC

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_KEPT_BYTES = 1 << 30
_LARGE_BYTES = 32 * 1024 * 1024  # larger blocks are mapped one by one and leave no holes
_APART_BYTES = 64 * 1024  # … and these too, while a model loads
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): VmHWM starts again from what is resident now


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory that a process uses, in bytes."""

    resident: int  # including memory shared with other processes
    shared: int  # of that, memory shared with others, such as the rings of decoded frames
    peak_resident: int  # since the start, or the last `forget_peak`
    private_reserved: int  # writable and private, touched or not: what `limit_private_bytes` limits

    @property
    def own(self) -> int:
        """Resident memory without what is shared."""
        return self.resident - self.shared


def use_one_arena() -> None:
    """Have all threads allocate from one arena. Call it before threads start."""
    _mallopt(_M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Have the allocator keep freed memory for later allocations.

    Else the tensors of each step of a network are requested from the system, page by page and zeroed, and
    returned after it: 2000 to 3000 page faults a frame with YOLOX-Nano, an eighth of its processor time. The
    peak stays the same. `give_back_free_memory` still returns all of it.
    """
    _mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)  # 128 KiB and fixed, once the other is set


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Have memory that is allocated during the block return to the system when it is freed.

    For weights, which stay while other memory comes and goes beside them. In the heap they would leave holes
    that `limit_private_bytes` counts: after six networks of 100 to 200 MB had come and gone, the heap was
    704 MiB large, and 151 MiB of it in use.
    """
    _mallopt(_M_MMAP_THRESHOLD, _APART_BYTES)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back_free_memory() -> None:
    """Return free memory of the allocator to the system; a no-op without glibc."""
    with contextlib.suppress(AttributeError):
        LIBC.malloc_trim(0)


def _mallopt(parameter: int, value: int) -> None:
    """Call mallopt(3); a no-op without glibc."""
    with contextlib.suppress(AttributeError):
        LIBC.mallopt(parameter, value)


def memory_use() -> MemoryUse:
    """Return what this process uses now."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    kib = {name: int(value.split()[0]) for name, value in fields.items() if value.endswith("kB")}
    return MemoryUse(
        resident=1024 * kib["VmRSS"],
        shared=1024 * kib["RssShmem"],
        peak_resident=1024 * kib["VmHWM"],
        private_reserved=1024 * kib["VmData"],
    )


def forget_peak() -> None:
    """Reset the peak, if the system allows it; else it stays the peak since the start."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")


def limit_private_bytes(budget_bytes: int) -> None:
    """Make allocations fail once this process uses `budget_bytes`.

    A failed allocation can be handled, by a smaller batch or by failing one job; being killed by the kernel
    cannot. Children inherit the limit. Memory that is reserved and never touched, such as most of a thread's
    stack, counts too, so the process stays below its budget by as much as it reserves.
    """
    use = memory_use()
    allowed = use.private_reserved + max(0, budget_bytes - use.own)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
