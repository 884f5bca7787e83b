"""What a child is given when it begins."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

from app.video.protocol.limits import VideoLimits


class Descriptor:
    """A file descriptor of the host that arrives in the child as its own number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (reduction.DupFd(self._number),)


def _detach(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """All that a child is given. Descriptors are numbers once it has arrived."""

    channel: Descriptor | int  # its end of a socket pair: commands and the video in, messages out
    ring: Descriptor | int
    ring_bytes: int
    memory_bytes: int  # address space, beyond what the child begins with
    limits: VideoLimits
    require_sandbox: bool
