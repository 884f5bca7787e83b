"""When to try again. No input or output here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 6 * 3600.0
MOST_ATTEMPTS = 11  # over a little more than a day
MOST_RETRY_AFTER_SECONDS = 86_400.0


def delivery_pause_seconds(
    attempts: int, *, jitter: Callable[[float, float], float] = random.uniform
) -> float:
    """Return the pause after the attempt number `attempts`, from 1: ×4 each time, ± a fifth."""
    pause: float = min(FIRST_PAUSE_SECONDS * 4 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
    return pause * jitter(0.8, 1.2)


def retry_after_seconds(header: str | None, *, clock: Callable[[], float] = time.time) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 if it is not valid."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            date: datetime = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - clock()
    return min(max(seconds, 0.0), MOST_RETRY_AFTER_SECONDS)
