"""How often a model hung at a job's video: a job at which it does so again and again has to end."""

from __future__ import annotations

from pathlib import Path

from app.errors import ModelFault
from app.storage.durable import atomic_write

MOST_HANGS = 2  # the first may have been the machine's fault; each costs every job its segments under way


def count_hang(account: Path) -> None:
    """Add one to the number in `account`, durably. OSError on a full disk."""
    count = hang_count(account) + 1
    with atomic_write(account) as file:
        file.write(str(count).encode())


def hang_count(account: Path) -> int:
    """Return the number in `account`; 0 if there is none."""
    try:
        return int(account.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0


def check_hangs(account: Path, model: str, *, call_seconds: float) -> None:
    """Raise ModelFault if `model` hung too often for the job to be tried again."""
    count = hang_count(account)
    if count >= MOST_HANGS:
        raise ModelFault(f"Model {model!r} gave no answer within {call_seconds:g} seconds, {count} times.")
