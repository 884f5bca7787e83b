from __future__ import annotations

from pathlib import Path

import pytest

from app.jobs.store import JobStore
from app.storage.data_folder import DataFolder
from app.wakeups import Wakeups


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A data folder with nothing in it."""
    folder = DataFolder(tmp_path / "data")
    folder.create()
    return folder


@pytest.fixture
def wakeups(folder: DataFolder) -> Wakeups:
    return Wakeups(folder.wakeups)


@pytest.fixture
def store(folder: DataFolder, wakeups: Wakeups) -> JobStore:
    """A store without jobs."""
    store = JobStore(folder.database, wakeups)
    store.create()
    return store
