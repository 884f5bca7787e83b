"""Waiting in tests: for something to come true, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 60.0  # far more than anything waited for takes, on a machine that does much else
_LOOK_SECONDS = 0.01


def wait_until(is_true: Callable[[], object], seconds: float = SECONDS) -> None:
    """Return once `is_true()`; fail if it stays false."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"it did not come true in {seconds} seconds"
        time.sleep(_LOOK_SECONDS)
