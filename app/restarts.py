"""How long a program waits before it starts again: not at all, then a little more after each crash in a row.

supervisor's own pauses grow by a second with every crash and have no bound, and after enough of them it
gives up: somebody would have to come. So it starts programs at once, for ever, and they wait by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)  # before the first start, the second, …; then the last
STEADY_SECONDS = 20.0  # a program that ran for so long has not crashed in a row


def pause_seconds(starts: int) -> float:
    """Return how long to wait before the next start, after so many in a row."""
    return PAUSES_SECONDS[min(starts, len(PAUSES_SECONDS) - 1)]


def _since_boot() -> float:
    """The same clock in every process, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def pause_before_start(
    account: Path,
    *,
    clock: Callable[[], float] = _since_boot,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the program may start; `account` remembers its starts. One caller at a time.

    An account that cannot be read or written, say on a full disk, costs the longest pause, not the start.
    """
    starts, last = _read(account, now=clock())
    if clock() - last > STEADY_SECONDS:
        starts = 0
    sleep(pause_seconds(starts))
    try:
        account.write_text(f"{starts + 1} {clock()}", encoding="ascii")
    except OSError:
        return


def _read(account: Path, *, now: float) -> tuple[int, float]:
    """Starts in a row, and the time of the last."""
    try:
        starts, last = account.read_text(encoding="ascii").split()
        return int(starts), float(last)
    except FileNotFoundError:
        return 0, now
    except (OSError, ValueError):  # cut short by a full disk
        return len(PAUSES_SECONDS), now
