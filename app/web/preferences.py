"""The Prefer header (RFC 7240): whether, and how long, a caller waits."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WAIT_LIMIT_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Preference:
    """`wait_seconds` None: wait until the end. `applied` is the Preference-Applied header, if any."""

    wait_seconds: float | None
    applied: str | None


def parse_prefer(header: str | None) -> Preference:
    """Read a Prefer header. What we do not know, or cannot read, is passed over, as the RFC wants it."""
    tokens = [token.strip().lower() for token in (header or "").split(",")]
    wait = next(
        (match for token in tokens if (match := re.fullmatch(r"wait\s*=\s*\"?(\d{1,9})\"?", token))), None
    )
    if wait:
        seconds = min(int(wait[1]), _WAIT_LIMIT_SECONDS)
        return Preference(float(seconds), f"wait={seconds}")
    if "respond-async" in tokens:
        return Preference(0.0, "respond-async")
    return Preference(None, None)
