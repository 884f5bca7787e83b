"""The verdicts of trials: what was found out about a model's files, kept by their content and the software.

A batch size that changed from one start to the next could change the last digit of a box, and a resumed job
would have to start over. So a verdict stays until the model, its device or the software that runs it changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from app.detection.model_facts import Verdict
from app.storage.durable import atomic_write
from app.storage.space import is_disk_full


@dataclass(frozen=True, slots=True)
class VerdictStore:
    """One JSON file a model in `folder`. `runtime` names everything else that influences a verdict."""

    folder: Path
    runtime: str

    def read(self, fingerprint: str) -> Verdict | None:
        """Return the verdict on the model with that SHA-256; None if there is none that can be read."""
        try:
            return Verdict.model_validate(orjson.loads(self._path(fingerprint).read_bytes()))
        except (OSError, orjson.JSONDecodeError, ValidationError):
            return None

    def write(self, fingerprint: str, verdict: Verdict) -> None:
        """Keep a verdict. On a full disk the model is tried again at the next start."""
        with _unless_disk_full():
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
        """Keep a converted model, and return its SHA-256; None if the disk is full."""
        digest = hashlib.sha256(content).hexdigest()
        with _unless_disk_full():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with atomic_write(self.folder / f"{digest}.onnx") as file:
                file.write(content)
            return digest
        return None

    def _path(self, fingerprint: str) -> Path:
        decides = orjson.dumps([fingerprint, self.runtime])
        return self.folder / f"{hashlib.sha256(decides).hexdigest()}.json"


@contextmanager
def _unless_disk_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
