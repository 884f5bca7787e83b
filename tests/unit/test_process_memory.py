"""The memory that a process uses, and its own limit, measured in other processes."""

from __future__ import annotations

import subprocess
import sys

MIB = 1024 * 1024

LIMITED = """
import numpy as np
from app.memory import limit_private_bytes, memory_use, use_one_arena
MIB = 1024 * 1024
use_one_arena()
before = memory_use()
limit_private_bytes(before.own + 64 * MIB)
kept = np.ones(32 * MIB, np.uint8)
try:
    np.ones(64 * MIB, np.uint8)
except MemoryError:
    print("refused")
more = np.ones(8 * MIB, np.uint8)
print(memory_use().own <= before.own + 64 * MIB)
"""


KEEPING = """
import resource
import numpy as np
from app.memory import give_back_free_memory, keep_freed_memory, memory_use, use_one_arena
MIB = 1024 * 1024
use_one_arena()
keep_freed_memory()
def step():
    return [np.ones(8 * MIB, np.uint8) for _ in range(4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100)
kept = memory_use().own
give_back_free_memory()
print(memory_use().own <= kept - 28 * MIB)
"""


APART = """
import numpy as np
from app.memory import give_back_free_memory, keep_freed_memory, large_blocks_apart, memory_use, use_one_arena
MIB = 1024 * 1024
use_one_arena()
keep_freed_memory()
before = memory_use().private_reserved
with large_blocks_apart():
    weights = [np.ones(MIB, np.uint8) for _ in range(64)]
freed = [np.ones(MIB, np.uint8) for _ in range(64)]
pin = np.ones(10_000, np.uint8)
del weights
print(memory_use().private_reserved - before < 80 * MIB)
del freed
give_back_free_memory()
print(memory_use().private_reserved - before > 60 * MIB)
"""


def test_weights_that_are_allocated_apart_leave_no_hole() -> None:
    """The last line shows what would be left behind otherwise."""
    done = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_an_allocation_beyond_the_limit_fails_and_the_process_continues() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "True"]


PEAK = """
import numpy as np
from app.memory import forget_peak, give_back_free_memory, memory_use
MIB = 1024 * 1024
forget_peak()
before = memory_use()
kept = np.ones(64 * MIB, np.uint8)
print(memory_use().own >= before.own + 60 * MIB)
del kept
give_back_free_memory()
after = memory_use()
print(after.peak_resident >= before.resident + 60 * MIB)
forget_peak()
print(memory_use().peak_resident <= after.peak_resident - 40 * MIB)
"""


def test_the_peak_is_seen_and_forgotten() -> None:
    """In a process of its own: where others ran, the allocator may have as much memory left over."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3
