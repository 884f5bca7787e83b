"""Delivers a job's end to one server: the report, signed as the Standard Webhooks specification says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus

import structlog
from standardwebhooks import Webhook

from app.courier.answers import retry_after_seconds
from app.egress.connection import Outbound, Unreachable
from app.egress.targets import TargetRefused, parse_target
from app.errors import JobNotFound
from app.failpoints import fail_point
from app.jobs.deliveries import DeliveryStore, DueDelivery
from app.jobs.job import DeliveryState, Job
from app.jobs.store import JobStore
from app.metrics import Metrics

_log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 6 * 3600.0
MOST_ATTEMPTS = 11  # over a little more than a day
_OUTCOMES = {  # of an attempt: the label of the metric, and the log's event
    DeliveryState.DELIVERED: ("delivered", "callback delivered"),
    DeliveryState.PENDING: ("failed", "callback not delivered yet"),
    DeliveryState.GIVEN_UP: ("given_up", "callback given up"),
}


@dataclass(slots=True, kw_only=True)
class Deliverer:
    """Makes one attempt a call. Safe to use from many threads."""

    store: JobStore
    report: Callable[[Job], bytes]  # the body for an ended job: the same bytes in every attempt
    deliveries: DeliveryStore
    outbound: Outbound
    secrets: InitVar[Sequence[str]]  # whsec_ and base64; all sign, so that receivers can change to another
    metrics: Metrics
    _signers: list[Webhook] = field(init=False, repr=False)

    def __post_init__(self, secrets: Sequence[str]) -> None:
        self._signers = [Webhook(secret) for secret in secrets]

    def deliver(self, due: DueDelivery) -> None:
        """Make one attempt and record the outcome; give up after the last, or if no attempt can succeed."""
        try:
            body = self.report(self.store.get(due.job_id, owner=due.owner))
        except JobNotFound:
            return  # deleted meanwhile, and its callbacks with it
        if due.attempts >= MOST_ATTEMPTS:  # this process died during the last one
            self._record(
                due, DeliveryState.GIVEN_UP, due.attempts, None, "the outcome of the last attempt is unknown"
            )
            return
        attempts = due.attempts + 1
        next_at = time.time() + delivery_pause_seconds(attempts)
        if not self.deliveries.begin(due.id, next_at=next_at):
            return
        fail_point("delivery_begun")
        state, status, error = DeliveryState.PENDING, None, None
        now = datetime.now(UTC)
        signatures = [signer.sign(due.id, now, body.decode()) for signer in self._signers]
        headers = {
            "Content-Type": "application/json",
            "webhook-id": due.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),  # receivers look for one that they can check
        }
        try:
            target = parse_target(due.url, self.outbound.rules)
            with self.outbound.request("POST", target, headers=headers, body=body) as response:
                # The body of the answer is not read: the connection is closed.
                status, wish = response.status, retry_after_seconds(response.headers.get("Retry-After"))
        except TargetRefused as refusal:
            state, error = DeliveryState.GIVEN_UP, refusal.reason
        except Unreachable as fault:
            error = str(fault)
        else:
            fail_point("delivery_answered")
            if 200 <= status < 300:
                state = DeliveryState.DELIVERED
            elif status == HTTPStatus.GONE:
                state, error = DeliveryState.GIVEN_UP, "the receiver wants no more callbacks"
            else:
                error, next_at = "the answer was not a success", max(next_at, time.time() + wish)
        if state is DeliveryState.PENDING and attempts >= MOST_ATTEMPTS:
            state = DeliveryState.GIVEN_UP
        self._record(due, state, attempts, status, error, next_at)

    def _record(
        self,
        due: DueDelivery,
        state: DeliveryState,
        attempts: int,
        status: int | None,
        error: str | None,
        next_at: float | None = None,
    ) -> None:
        if state is not DeliveryState.PENDING:
            next_at = None
        self.deliveries.record(due.id, state, status=status, error=error, next_at=next_at)
        outcome, event = _OUTCOMES[state]
        self.metrics.deliveries.labels(outcome).inc()
        log = _log.warning if state is DeliveryState.GIVEN_UP else _log.info
        log(event, status=status, fault=error, attempts=attempts)


def delivery_pause_seconds(
    attempts: int, *, jitter: Callable[[float, float], float] = random.uniform
) -> float:
    """Return the pause after the attempt number `attempts`, from 1: ×4 each time, ± a fifth."""
    pause: float = min(FIRST_PAUSE_SECONDS * 4 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
    return pause * jitter(0.8, 1.2)
