"""A document's other forms: made when first asked for, kept beside it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import Busy
from app.jobs.job import Job
from app.jobs.store import JobStore
from app.pipeline.formats import FormatContext, convert
from app.pipeline.options import DocumentFormat
from app.storage.data_folder import DataFolder
from app.storage.durable import atomic_write
from app.storage.space import SpaceLedger
from app.storage.spool import held_folder

_TURN_SECONDS = 600.0
_PROMISE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Form:
    """A finished file and its digest."""

    path: Path
    sha256: str  # hex


class FormMaker:
    """Gives out documents in the form that is asked for; converts one at a time a process."""

    def __init__(self, folder: DataFolder, store: JobStore, space: SpaceLedger) -> None:
        self._folder = folder
        self._store = store
        self._space = space
        self._turn = threading.Lock()  # a conversion keeps one core busy: others would only slow it down

    def get(self, job: Job, document_format: DocumentFormat) -> Form:
        """Return the succeeded job's document as `document_format`.

        Raises JobNotFound if the job is deleted meanwhile, InsufficientStorage, Busy.
        """
        if document_format is DocumentFormat.PAIRS:
            path = self._folder.result(job.id, DocumentFormat.PAIRS)
            return Form(path, (job.report or {})["document"]["sha256"])
        try:
            return self._found(job, document_format) or self._in_turn(job, document_format)
        except FileNotFoundError:
            self._store.get(job.id)
            raise

    def _found(self, job: Job, document_format: DocumentFormat) -> Form | None:
        path = self._folder.result(job.id, document_format)
        digest_file = _digest_file(path)
        return Form(path, digest_file.read_text()) if digest_file.exists() else None

    def _in_turn(self, job: Job, document_format: DocumentFormat) -> Form:
        deadline = time.monotonic() + _TURN_SECONDS
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            raise _busy()
        try:
            with held_folder(self._folder.job(job.id), deadline=deadline) as is_held:
                if not is_held:
                    raise _busy()
                return self._found(job, document_format) or self._make(job, document_format)
        finally:
            self._turn.release()

    def _make(self, job: Job, document_format: DocumentFormat) -> Form:
        """Convert, alone in the job's folder. The digest comes last: where it lies, the form is whole."""
        pairs = self._folder.result(job.id, DocumentFormat.PAIRS)
        path = self._folder.result(job.id, document_format)
        key = f"{job.id} {document_format}"
        remove_unfinished_forms(self._folder.job(job.id))
        self._space.reserve(key, pairs.stat().st_size, seconds=_PROMISE_SECONDS)
        try:
            convert(pairs, document_format, path, self._context(job))
            digest = _file_sha256(path)
            with atomic_write(_digest_file(path)) as file:
                file.write(digest.encode())
        finally:
            self._space.release(key)
        return Form(path, digest)

    def _context(self, job: Job) -> FormatContext:
        video: dict[str, Any] = (job.report or {}).get("video") or {}
        models = {model["name"]: model for model in self._store.engine_status().models}
        return FormatContext(
            video_name=job.source.name or "video",
            width=int(video.get("width", 0)),
            height=int(video.get("height", 0)),
            labels=tuple(models.get(job.model, {}).get("labels", ())),
        )


def remove_forms_cut_short(folder: DataFolder) -> int:
    """Remove what conversions left that were killed; return how many. Those under way are left alone."""
    removed = 0
    for job_folder in folder.jobs.iterdir():
        if any(_unfinished_forms(job_folder)):
            with held_folder(job_folder, deadline=time.monotonic()) as is_held:
                removed += remove_unfinished_forms(job_folder) if is_held else 0
    return removed


def remove_unfinished_forms(job_folder: Path) -> int:
    """Remove them; the caller holds the folder. The document itself is the engine's to write and to clear."""
    unfinished = [*_unfinished_forms(job_folder)]
    for path in unfinished:
        path.unlink(missing_ok=True)
    return len(unfinished)


def _unfinished_forms(job_folder: Path) -> Iterator[Path]:
    own = tuple(f".result.{name}." for name in DocumentFormat if name is not DocumentFormat.PAIRS)
    try:
        yield from (path for path in job_folder.glob(".result.*.tmp") if path.name.startswith(own))
    except FileNotFoundError:  # the job was removed
        return


def _busy() -> Busy:
    return Busy("Other documents are being converted.", {"retry_after_seconds": 60})


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
