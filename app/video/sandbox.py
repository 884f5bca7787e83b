"""In the child: the lock-down. After it, the process can compute and use its few descriptors, no more."""

from __future__ import annotations

import os
import resource

from app.video.messages import Ready


def lock_down(*, keep: tuple[int, ...], memory_bytes: int) -> Ready:
    """Close every descriptor but `keep`, and bound the process's memory."""
    lowest = 3
    for descriptor in sorted(keep):
        os.closerange(lowest, descriptor)
        lowest = descriptor + 1
    os.closerange(lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    return Ready(0, seccomp=False, no_new_privileges=False, memory_limited=True)
