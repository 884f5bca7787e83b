"""Delivers a job's end to one server: the report, signed as the Standard Webhooks specification says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus

import structlog
from standardwebhooks import Webhook

from app.courier.retry import MOST_ATTEMPTS, delivery_pause_seconds, retry_after_seconds
from app.egress.connection import Outbound, Unreachable
from app.egress.targets import TargetRefused, parse_target
from app.errors import JobNotFound
from app.failpoints import fail_point
from app.jobs.deliveries import DeliveryStore, DueDelivery
from app.jobs.job import Job
from app.jobs.store import JobStore
from app.metrics import Metrics

_log = structlog.get_logger()


class Deliverer:
    """Makes one attempt a call. Safe to use from many threads."""

    def __init__(
        self,
        *,
        store: JobStore,
        report: Callable[[Job], bytes],
        deliveries: DeliveryStore,
        outbound: Outbound,
        secrets: Sequence[str],
        metrics: Metrics,
    ) -> None:
        """`report` returns the body for an ended job: the same bytes in every attempt.

        All `secrets` (whsec_ and base64) sign, so that receivers can move from one to the next.
        """
        self._store = store
        self._report = report
        self._deliveries = deliveries
        self._outbound = outbound
        self._signers = [Webhook(secret) for secret in secrets]
        self._metrics = metrics

    def deliver(self, due: DueDelivery) -> None:
        """Make one attempt and record the outcome; give up after the last, or if no attempt can succeed."""
        try:
            body = self._report(self._store.get(due.job_id, owner=due.owner))
        except JobNotFound:
            return  # deleted meanwhile, and its callbacks with it
        if due.attempts >= MOST_ATTEMPTS:  # this process died during the last one
            self._give_up(due, None, "the outcome of the last attempt is unknown")
            return
        attempts = due.attempts + 1
        next_at = time.time() + delivery_pause_seconds(attempts)
        if not self._deliveries.begin(due.id, next_at=next_at):
            return
        fail_point("delivery_begun")
        is_last = attempts >= MOST_ATTEMPTS
        try:
            target = parse_target(due.url, self._outbound.rules)
            headers = {"Content-Type": "application/json", **self._signature(due.id, body)}
            with self._outbound.request("POST", target, headers=headers, body=body) as response:
                # The body of the answer is not read: the connection is closed.
                status, wish = response.status, retry_after_seconds(response.headers.get("Retry-After"))
        except TargetRefused as refusal:
            self._give_up(due, None, refusal.reason)
            return
        except Unreachable as fault:
            self._fail(due, None, str(fault), next_at, is_last=is_last)
            return
        fail_point("delivery_answered")
        if 200 <= status < 300:
            self._deliveries.delivered(due.id, status)
            self._metrics.deliveries.labels("delivered").inc()
            _log.info("callback delivered", status=status, attempts=attempts)
        elif status == HTTPStatus.GONE:
            self._give_up(due, status, "the receiver wants no more callbacks")
        else:
            next_at = max(next_at, time.time() + wish)
            self._fail(due, status, "the answer was not a success", next_at, is_last=is_last)

    def _signature(self, delivery_id: str, body: bytes) -> dict[str, str]:
        """Return the three headers, with the signatures of all secrets; a receiver checks for one of them."""
        now = datetime.now(UTC)
        signatures = [signer.sign(delivery_id, now, body.decode()) for signer in self._signers]
        return {
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    def _fail(
        self, due: DueDelivery, status: int | None, error: str, next_at: float, *, is_last: bool
    ) -> None:
        if is_last:
            self._give_up(due, status, error)
            return
        self._deliveries.failed(due.id, status=status, error=error, next_at=next_at)
        self._metrics.deliveries.labels("failed").inc()
        _log.info("callback not delivered yet", status=status, fault=error, attempts=due.attempts + 1)

    def _give_up(self, due: DueDelivery, status: int | None, error: str) -> None:
        self._deliveries.give_up(due.id, status=status, error=error)
        self._metrics.deliveries.labels("given_up").inc()
        _log.warning("callback given up", status=status, fault=error, attempts=due.attempts)
