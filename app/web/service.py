"""What the views work with: collaborators and limits, given to them by the factory."""

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
from app.web.forms import FormMaker
from app.web.pace import PaceKeeper
from app.web.waiting import WaitingPlaces


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What a request may ask for."""

    max_upload_bytes: int
    max_active_jobs: int
    max_wait_seconds: float  # of a request for its answer
    compress: bool  # documents, for clients that accept it
    default_model: str
    cors_origins: tuple[str, ...]  # whose pages may upload
    attach: bool  # a request that does not say gets an equal job's answer
    version: str  # of this release
    addresses: AddressRules = field(default_factory=AddressRules)  # of other servers
    callbacks: bool = False  # there is a secret to sign them with


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
    forms: FormMaker
    metrics: Metrics
    pace: PaceKeeper
    places: WaitingPlaces  # of requests that wait for their job's end
    form_places: WaitingPlaces  # of those that want another form, which may have to be made
    limits: WebLimits
    stopping: threading.Event = field(default_factory=threading.Event)  # set when the worker is told to end
