"""The verdicts of trials: what was found out about a model's files, kept by their content and the software.

A batch size that changed from one start to the next could change the last digit of a box, and a resumed job
would have to start over. So a verdict stays until the model, its device or the software that runs it changes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog
from pydantic import ValidationError

from app.detection.model_facts import Verdict
from app.storage.durable import atomic_write

KEPT_DAYS = 30  # since a verdict was last used

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VerdictStore:
    """One JSON file a model in `folder`. `runtime` names everything else that influences a verdict."""

    folder: Path
    runtime: str

    def read(self, fingerprint: str) -> Verdict | None:
        """Return the verdict on the model with that SHA-256; None if there is none that can be read."""
        path = self._path(fingerprint)
        try:
            verdict = Verdict.model_validate(orjson.loads(path.read_bytes()))
            for used in (path, *self._files_of(verdict)):
                os.utime(used)  # it is still needed: see `remove_unused`
        except (OSError, orjson.JSONDecodeError, ValidationError):
            return None
        return verdict

    def write(self, fingerprint: str, verdict: Verdict) -> None:
        """Keep a verdict. If the disk takes nothing, the model is tried again at the next start."""
        with _logged():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with atomic_write(self._path(fingerprint)) as file:
                file.write(orjson.dumps(verdict.model_dump(mode="json")))

    def read_file(self, digest: str) -> bytes | None:
        """Return the file with that SHA-256; None if it is not there, or damaged."""
        try:
            content = (self.folder / f"{digest}.onnx").read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def write_file(self, content: bytes) -> str | None:
        """Keep a converted model, and return its SHA-256; None if the disk takes nothing."""
        digest = hashlib.sha256(content).hexdigest()
        with _logged():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with atomic_write(self.folder / f"{digest}.onnx") as file:
                file.write(content)
            return digest
        return None

    def remove_unused(self) -> None:
        """Remove what was not read for KEPT_DAYS, and what killed writers left. No trial is running."""
        oldest = time.time() - KEPT_DAYS * 86400
        for path in self.folder.glob("*"):
            with suppress(OSError):
                if path.suffix == ".tmp" or path.stat().st_mtime < oldest:
                    path.unlink()

    def _files_of(self, verdict: Verdict) -> list[Path]:
        return [] if verdict.converted is None else [self.folder / f"{verdict.converted}.onnx"]

    def _path(self, fingerprint: str) -> Path:
        decides = orjson.dumps([fingerprint, self.runtime])
        return self.folder / f"{hashlib.sha256(decides).hexdigest()}.json"


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("the verdict on a model cannot be kept", reason=str(error))
