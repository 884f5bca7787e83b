"""A document's other forms: made when first asked for, kept beside it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from app.errors import Busy
from app.jobs.job import Job
from app.jobs.store import JobStore
from app.pipeline.formats import FormatContext, convert
from app.pipeline.frame_times import FrameTimes
from app.pipeline.options import RENDERINGS, Rendering
from app.storage.data_folder import DataFolder
from app.storage.durable import atomic_write
from app.storage.locks import held_folder
from app.storage.space import SpaceLedger

T = TypeVar("T")

_TURN_SECONDS = 600.0
_PROMISE_SECONDS = 3600.0
_TEXT_OF_PTS = 5  # a time as text is so many times as long as its time stamp


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

    def get(self, job: Job, rendering: Rendering) -> Form:
        """Return the succeeded job's document as `rendering`.

        Raises JobNotFound if the job is deleted meanwhile, InsufficientStorage, Busy.
        """
        if rendering.is_document:
            return Form(self._folder.document(job.id), _known(_known(job.report).document).sha256)
        try:
            return self._found(job, rendering) or self._in_turn(job, rendering)
        except FileNotFoundError:
            self._store.get(job.id, owner=job.owner)
            raise

    def _found(self, job: Job, rendering: Rendering) -> Form | None:
        path = self._folder.result(job.id, rendering.name)
        digest_file = _digest_file(path)
        return Form(path, digest_file.read_text()) if digest_file.exists() else None

    def _in_turn(self, job: Job, rendering: Rendering) -> Form:
        deadline = time.monotonic() + _TURN_SECONDS
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            raise _busy()
        try:
            with held_folder(self._folder.job(job.id), deadline=deadline) as is_held:
                if not is_held:
                    raise _busy()
                return self._found(job, rendering) or self._make(job, rendering)
        finally:
            self._turn.release()

    def _make(self, job: Job, rendering: Rendering) -> Form:
        """Convert, alone in the job's folder. The digest comes last: where it lies, the form is whole."""
        pairs, times = self._folder.document(job.id), self._times(job)
        path = self._folder.result(job.id, rendering.name)
        key = f"{job.id} {rendering.name}"
        size_bytes = pairs.stat().st_size
        if rendering.times:
            size_bytes += times.pts.stat().st_size * _TEXT_OF_PTS
        remove_unfinished_forms(self._folder.job(job.id))
        self._space.reserve(key, size_bytes, seconds=_PROMISE_SECONDS)
        try:
            convert(pairs, rendering, path, _context(job), times)
            digest = _file_sha256(path)
            with atomic_write(_digest_file(path)) as file:
                file.write(digest.encode())
        finally:
            self._space.release(key)
        return Form(path, digest)

    def _times(self, job: Job) -> FrameTimes:
        return FrameTimes(self._folder.pts(job.id), Fraction(_known(_known(job.report).video).time_base))


def _context(job: Job) -> FormatContext:
    """What the job's report tells: the model may be another by now, or gone."""
    report = _known(job.report)
    video = _known(report.video)
    return FormatContext(
        video_name=job.source.name or "video",
        width=video.width,
        height=video.height,
        labels=report.model.labels,
    )


def _known(found: T | None) -> T:
    """Return a member that the report of every succeeded job has."""
    if found is None:
        raise ValueError("the job has not succeeded")
    return found


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
    own = tuple(f".result.{rendering.name}." for rendering in RENDERINGS if not rendering.is_document)
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
