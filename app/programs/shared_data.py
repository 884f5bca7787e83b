"""What the programs of an instance share: the data folder, its wake-ups and its database."""

from __future__ import annotations

from app.jobs.database import Database
from app.logs import configure_logging
from app.settings import Settings
from app.storage.data_folder import DataFolder
from app.wakeups import Program, Wakeups


def open_shared_data(program: Program, settings: Settings) -> tuple[DataFolder, Wakeups, Database]:
    """Configure the log of `program`, and create the data folder and its database if they are missing."""
    configure_logging(program, settings.log_level)
    data = DataFolder(settings.data)
    data.create()
    wakeups = Wakeups(data.wakeups)
    database = Database(data.database, wakeups)
    database.create()
    return data, wakeups, database
