"""How long a program waits before it starts again: not at all, then longer after each crash in a row.

supervisor's own pauses grow without a bound, and after some crashes it gives up until an administrator acts.
So it is configured to restart programs at once and forever, and the programs wait by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)  # before the first start, the second, …; then the last
STEADY_SECONDS = 20.0  # a program that ran for this long is not in a series of crashes


def pause_seconds(starts: int) -> float:
    """Return how long to wait before the next start, after `starts` starts in a row."""
    return PAUSES_SECONDS[min(starts, len(PAUSES_SECONDS) - 1)]


def _since_boot() -> float:
    """A clock that is the same in every process and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def pause_before_start(
    record: Path,
    *,
    clock: Callable[[], float] = _since_boot,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sleep until the program may start; `record` is the file that counts its starts. One caller at a time.

    If the file cannot be read or written, as on a full disk, the pause is the longest.
    """
    try:
        starts_text, last_text = record.read_text(encoding="ascii").split()
        starts, last = int(starts_text), float(last_text)
    except FileNotFoundError:
        starts, last = 0, clock()
    except (OSError, ValueError):  # truncated by a full disk
        starts, last = len(PAUSES_SECONDS), clock()
    if clock() - last > STEADY_SECONDS:
        starts = 0
    sleep(pause_seconds(starts))
    with suppress(OSError):
        record.write_text(f"{starts + 1} {clock()}", encoding="ascii")
