"""Builds the courier from the settings."""

from __future__ import annotations

import signal
import threading
from argparse import Namespace

from app.courier.courier import Courier
from app.courier.deliverer import Deliverer
from app.courier.fetcher import Fetcher, FetchLimits
from app.egress.addresses import AddressRules
from app.egress.connection import Outbound, make_trust
from app.jobs.deliveries import DeliveryStore
from app.jobs.fetches import FetchStore
from app.jobs.store import JobStore
from app.metrics import Metrics, retire_counters
from app.programs.shared_data import open_shared_data
from app.settings import Settings
from app.storage.space import SpaceLedger
from app.storage.uploads import UploadLimits, Uploads
from app.wakeups import Program
from app.web.report import callback_body


def run(settings: Settings, _: Namespace) -> None:
    """Run the courier."""
    create_courier(settings).run()


def create_courier(settings: Settings) -> Courier:
    """Return the courier of this data folder, ready to `run`; SIGTERM and SIGINT stop it.

    Call it in the main thread of a process that holds the data folder's courier lock.
    """
    data, wakeups, database = open_shared_data(Program.COURIER, settings)
    retire_counters()
    metrics, stop = Metrics(), threading.Event()
    outbound = Outbound(AddressRules(settings.allowed_hosts), make_trust(settings.ca_file))
    space = SpaceLedger(data.space_ledger, data.root, min_free_bytes=settings.min_free_bytes)
    secrets = [secret.get_secret_value() for secret in settings.webhook_secret]
    deliverer = Deliverer(
        store=JobStore(database),
        report=callback_body,
        deliveries=DeliveryStore(database),
        outbound=outbound,
        secrets=secrets,
        metrics=metrics,
    )
    courier = Courier(
        database=database,
        fetcher=Fetcher(
            data=data,
            fetches=FetchStore(database),
            uploads=Uploads(data.fetches, space, UploadLimits(settings.fetch_hours * 3600.0)),
            outbound=outbound,
            limits=FetchLimits(settings.max_upload_bytes, max_seconds=settings.fetch_hours * 3600.0),
            metrics=metrics,
            stop=stop,
        ),
        deliverer=deliverer if secrets else None,
        fetches_at_once=settings.fetches,
        stop=stop,
        wakeups=wakeups,
    )
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda _number, _frame: courier.stop())
    return courier
