"""What a child is given when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import reduction
from operator import methodcaller
from typing import Any

from app.video.protocol.limits import VideoLimits


class Descriptor:
    """A file descriptor of the host that arrives in the child as its own number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return methodcaller("detach"), (reduction.DupFd(self._number),)


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """Everything that a child is given. Descriptors are numbers once it has arrived."""

    channel: Descriptor | int  # its end of a socket pair: commands and the video in, messages out
    ring: Descriptor | int
    ring_bytes: int
    memory_bytes: int  # address space, in addition to what the child starts with
    limits: VideoLimits
    require_sandbox: bool
