"""Kill processes that may end by themselves meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to each that still runs: the end of one often ends the next."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
