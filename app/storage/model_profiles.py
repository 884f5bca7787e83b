"""Measurements of models, made once and kept; and which models never finished loading.

A batch size that changed from one start to the next could change the last digit of a box, and a resumed job
would have to start over. So a measurement stays until the model, its device or the software that runs it
changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import orjson

from app.storage.durable import atomic_write
from app.storage.space import is_disk_full

Profile = TypeVar("Profile")


@dataclass(frozen=True, slots=True)
class ProfileStore(Generic[Profile]):
    """One JSON file a model and device in `folder`, and one a model being loaded in `attempts_folder`.

    `runtime` names everything else that influences a measurement: versions, numbers of threads.
    """

    folder: Path
    attempts_folder: Path
    runtime: str

    def read(self, fingerprint: str, device: str) -> Profile | None:
        """Return the measurement; None if there is none that can be read."""
        try:
            found = orjson.loads(self._path(fingerprint, device).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        return cast("Profile", found["profile"])

    def write(self, fingerprint: str, device: str, profile: Profile) -> None:
        """Keep a measurement. On a full disk it is made again at the next start."""
        known: dict[str, Any] = {"device": device, "runtime": self.runtime, "profile": profile}
        with _unless_disk_full():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with atomic_write(self._path(fingerprint, device)) as file:
                file.write(orjson.dumps(known))

    def unfinished_attempts(self, name: str) -> int:
        """Return how many attempts to load `name` in a row ended with their process.

        Reasons are a crash, a timeout, or a lack of memory.
        """
        try:
            return int(self._mark(name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def begin_attempt(self, name: str) -> None:
        """Record that `name` is being loaded."""
        count = self.unfinished_attempts(name) + 1
        with _unless_disk_full():
            self.attempts_folder.mkdir(mode=0o700, exist_ok=True)
            self._mark(name).write_text(str(count), encoding="ascii")

    def end_attempt(self, name: str) -> None:
        """Record that an attempt ended, whether it succeeded or not: earlier ones no longer count."""
        self._mark(name).unlink(missing_ok=True)

    def _mark(self, name: str) -> Path:
        return self.attempts_folder / hashlib.sha256(name.encode()).hexdigest()

    def _path(self, fingerprint: str, device: str) -> Path:
        decides = orjson.dumps([fingerprint, device, self.runtime])
        return self.folder / f"{hashlib.sha256(decides).hexdigest()}.json"


@contextmanager
def _unless_disk_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
