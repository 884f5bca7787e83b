"""The views' collaborators and limits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from app.egress.addresses import AddressRules
from app.jobs.database import Database
from app.jobs.heartbeats import Heartbeats
from app.jobs.intake import Intake
from app.jobs.store import JobStore
from app.jobs.watcher import JobWatcher
from app.metrics import Metrics
from app.storage.bodies import BodyFolders
from app.storage.data_folder import DataFolder
from app.storage.follower import BodyFollower
from app.storage.space import SpaceLedger
from app.storage.uploads import Uploads
from app.web.upload_pace import PaceKeeper


@dataclass(frozen=True, slots=True)
class WebLimits:
    """Limits and defaults of requests."""

    max_upload_bytes: int
    max_active_jobs: int
    max_wait_seconds: float  # for a job's end
    compress: bool  # documents, for clients that accept it
    default_model: str
    cors_origins: tuple[str, ...]  # of pages that may upload
    attach: bool  # the default: answer with the job of an equal video and options
    version: str
    addresses: AddressRules = field(default_factory=AddressRules)  # of other servers
    callbacks: bool = False  # whether there is a secret to sign them with


@dataclass(frozen=True, slots=True)
class Service:
    """The collaborators of all views of one HTTP worker."""

    folder: DataFolder
    database: Database
    store: JobStore
    heartbeats: Heartbeats
    intake: Intake
    watcher: JobWatcher
    bodies: BodyFolders
    follower: BodyFollower
    space: SpaceLedger
    uploads: Uploads
    metrics: Metrics
    pace: PaceKeeper
    waiting_slots: threading.BoundedSemaphore  # for requests that wait for their job's end
    rendering_slots: threading.BoundedSemaphore  # for requests whose rendering may have to be converted first
    limits: WebLimits
    converting: threading.Lock = field(default_factory=threading.Lock)  # a conversion uses a whole core
    stopping: threading.Event = field(default_factory=threading.Event)  # set when the worker is asked to stop
