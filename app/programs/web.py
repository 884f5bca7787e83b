"""Builds an HTTP worker's application from the settings."""

from __future__ import annotations

import threading

from flask import Flask

from app.egress.addresses import AddressRules
from app.jobs.heartbeats import Heartbeats
from app.jobs.intake import Intake
from app.jobs.queue import JobQueue
from app.jobs.retention import remove_leftovers
from app.jobs.store import JobStore
from app.jobs.watcher import JobWatcher
from app.metrics import Metrics
from app.programs.shared_data import open_shared_data
from app.settings import Settings, load_settings
from app.storage.bodies import BodyFolders
from app.storage.follower import BodyFollower
from app.storage.ingest import Ingest
from app.storage.space import SpaceLedger
from app.storage.spool import Spool
from app.storage.uploads import UploadLimits, Uploads
from app.version import VERSION
from app.wakeups import Program
from app.web.application import create_web_app
from app.web.renderings import remove_unfinished_renderings
from app.web.service import Service, WebLimits
from app.web.upload_pace import PaceKeeper, PaceRule


def create_app(settings: Settings | None = None) -> Flask:
    """Return an HTTP worker's application: the entry point of gunicorn.

    Creates the data folder and its database if they are missing, and removes what crashed uploads left.
    Raises SettingsFault.
    """
    settings = settings or load_settings()
    folder, wakeups, database = open_shared_data(Program.WEB, settings)
    store = JobStore(database)
    bodies = BodyFolders(folder)
    space = SpaceLedger(
        folder.space_ledger,
        folder.root,
        min_free_bytes=settings.min_free_bytes,
        body_sizes=bodies.sizes,
    )
    spool = Spool(folder, space)
    remove_leftovers(folder, spool, JobQueue(database))
    remove_unfinished_renderings(folder)
    bodies.remove_leftovers()
    uploads = Uploads(
        folder.uploads, space, UploadLimits(settings.keep_upload_hours * 3600.0, settings.max_open_uploads)
    )
    uploads.recover()
    service = Service(
        folder=folder,
        database=database,
        store=store,
        heartbeats=Heartbeats(database),
        intake=Intake(folder, store, spool, Ingest(settings.ingest)),
        watcher=JobWatcher(database, wakeups),
        bodies=bodies,
        follower=BodyFollower(bodies, space.body_folders, folder.lock("follower")),
        space=space,
        uploads=uploads,
        metrics=Metrics(),
        pace=PaceKeeper(PaceRule(settings.min_upload_bytes_per_second, settings.upload_pace_seconds)),
        waiting_slots=threading.BoundedSemaphore(settings.http_threads // 4),
        rendering_slots=threading.BoundedSemaphore(max(1, settings.http_threads // 16)),
        limits=WebLimits(
            max_upload_bytes=settings.max_upload_bytes,
            max_active_jobs=settings.max_active_jobs,
            max_wait_seconds=settings.max_wait_seconds,
            compress=settings.compress,
            default_model=settings.model,
            cors_origins=settings.cors_origins,
            attach=settings.attach,
            version=VERSION,
            addresses=AddressRules(settings.allowed_hosts),
            callbacks=bool(settings.webhook_secret),
        ),
    )
    return create_web_app(service)
