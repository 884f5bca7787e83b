"""The records of callbacks: which job's end is to be told where, when next, and how it went.

An attempt is counted before it is made: one that the courier does not live to see the end of is made again
after its pause, with the same id, and no receiver that brings the courier down is asked for ever.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from app.jobs.job import DeliveryState
from app.jobs.store import JobStore

AT_ONCE = 4  # to one address, so that a receiver that hangs does not keep the others waiting


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """An attempt to be made."""

    id: str
    job_id: str
    url: str = field(repr=False)
    attempts: int  # made before this one


class DeliveryStore:
    """The callbacks of one data folder. One courier writes them."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def due(self, limit: int, *, now: float) -> list[DueDelivery]:
        """What is to be delivered now, the longest due first, and of one receiver no more than AT_ONCE."""
        rows = self._store.reading().execute(
            """
            SELECT id, job_id, url, attempts FROM (
                SELECT *, row_number() OVER (PARTITION BY shown ORDER BY next_at) AS turn
                FROM deliveries WHERE state = 'pending' AND next_at <= ?
            ) WHERE turn <= ? ORDER BY next_at LIMIT ?
            """,
            (now, AT_ONCE, limit),
        )
        return [DueDelivery(row["id"], row["job_id"], row["url"], row["attempts"]) for row in rows]

    def begin(self, delivery_id: str, *, next_at: float) -> bool:
        """Count an attempt; the next one is due at `next_at`. False if nobody wants it any more."""
        with self._store.transaction() as connection:
            return bool(
                connection.execute(
                    "UPDATE deliveries SET attempts = attempts + 1, next_at = ? "
                    "WHERE id = ? AND state = 'pending'",
                    (next_at, delivery_id),
                ).rowcount
            )

    def delivered(self, delivery_id: str, status: int) -> None:
        self._end(delivery_id, DeliveryState.DELIVERED, status, None)

    def give_up(self, delivery_id: str, *, status: int | None, error: str) -> None:
        """Try no more."""
        self._end(delivery_id, DeliveryState.GIVEN_UP, status, error)

    def failed(self, delivery_id: str, *, status: int | None, error: str, next_at: float) -> None:
        """The attempt failed; another one is made at `next_at`."""
        with self._store.transaction() as connection:
            connection.execute(
                "UPDATE deliveries SET last_status = ?, last_error = ?, next_at = ? WHERE id = ?",
                (status, error, next_at, delivery_id),
            )

    def _end(self, delivery_id: str, state: DeliveryState, status: int | None, error: str | None) -> None:
        delivered_at = time.time() if state is DeliveryState.DELIVERED else None
        with self._store.transaction() as connection:
            connection.execute(
                "UPDATE deliveries SET state = ?, last_status = ?, last_error = ?, next_at = NULL, "
                "delivered_at = ? WHERE id = ?",
                (state, status, error, delivered_at, delivery_id),
            )
