from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import Stores

from app.jobs.job import OWNER, Job, JobState, Progress, VideoSource
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import DataFolder, new_job_id
from app.wakeups import Wakeups


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A data folder with nothing in it."""
    folder = DataFolder(tmp_path / "data")
    folder.create()
    return folder


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """Make a running job as the store would give it, but for what is named."""

    def make(**fields: Any) -> Job:
        plain = Job(
            id=new_job_id(),
            owner=OWNER,
            state=JobState.RUNNING,
            request_id="request",
            model="none",
            options=DetectionOptions(),
            source=VideoSource(1, "ab" * 32, "clip.mp4"),
            created_at=0.0,
            started_at=0.0,
            finished_at=None,
            progress=Progress(),
            cancel_requested=False,
            problem=None,
            report=None,
        )
        return replace(plain, **fields)

    return make


@pytest.fixture
def wakeups(folder: DataFolder) -> Wakeups:
    return Wakeups(folder.wakeups)


@pytest.fixture
def store(folder: DataFolder, wakeups: Wakeups) -> Stores:
    """A store without jobs."""
    store = Stores(folder.database, wakeups)
    store.database.create()
    return store
