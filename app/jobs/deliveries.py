"""The records of callbacks: to which address a job's end is delivered, when next, and how that went.

An attempt is counted before it is made. If the courier dies during an attempt, it is made again after its
pause, with the same id; a receiver that crashes the courier is not tried forever.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from app.jobs.database import Database
from app.jobs.job import DeliveryState

AT_ONCE = 4  # to one address, so that a receiver that hangs does not block the others


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """An attempt to be made."""

    id: str
    owner: str
    job_id: str
    url: str = field(repr=False)
    attempts: int  # made before this one


class DeliveryStore:
    """The callbacks of one data folder. One courier writes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, limit: int, *, now: float) -> list[DueDelivery]:
        """Return what is due now, the longest due first, at most AT_ONCE for one receiver."""
        rows = self._database.read(
            """
            SELECT id, owner, job_id, url, attempts FROM (
                SELECT *, row_number() OVER (PARTITION BY shown ORDER BY next_at) AS turn
                FROM deliveries WHERE state = 'pending' AND next_at <= ?
            ) WHERE turn <= ? ORDER BY next_at LIMIT ?
            """,
            (now, AT_ONCE, limit),
        )
        return [DueDelivery(*row) for row in rows]

    def begin(self, delivery_id: str, *, next_at: float) -> bool:
        """Count an attempt; the next one is due at `next_at`. False if it is no longer wanted."""
        pending = "id = ? AND state = 'pending'"
        query = f"UPDATE deliveries SET attempts = attempts + 1, next_at = ? WHERE {pending}"  # noqa: S608
        with self._database.transaction() as connection:
            return bool(connection.execute(query, (next_at, delivery_id)).rowcount)

    def record(
        self,
        delivery_id: str,
        state: DeliveryState,
        *,
        status: int | None,
        error: str | None,
        next_at: float | None,
    ) -> None:
        """Record the outcome of an attempt. `next_at` is when the next one is due, None if there is none."""
        delivered_at = time.time() if state is DeliveryState.DELIVERED else None
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE deliveries SET state = ?, last_status = ?, last_error = ?, next_at = ?, "
                "delivered_at = ? WHERE id = ?",
                (state, status, error, next_at, delivered_at, delivery_id),
            )
