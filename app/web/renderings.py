"""A document's renderings in other formats: converted on first request and kept beside the document."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from app.errors import Busy
from app.jobs.job import Job
from app.pipeline.formats import FormatContext, convert
from app.pipeline.frame_times import FrameTimes
from app.pipeline.options import RENDERINGS, Rendering
from app.storage.data_folder import DataFolder
from app.storage.durable import atomic_write
from app.storage.locks import held_folder
from app.web.service import Service

_WAIT_SECONDS = 600.0  # for other conversions
_RESERVATION_SECONDS = 3600.0
_PTS_TEXT_RATIO = 5  # how many times longer a time is as text than as a binary time stamp


@dataclass(frozen=True, slots=True)
class RenderedDocument:
    """A finished file and its digest."""

    path: Path
    sha256: str  # hex


def rendered_document(job: Job, rendering: Rendering, service: Service) -> RenderedDocument:
    """Return the succeeded job's document as `rendering`; one conversion at a time per process.

    Raises JobNotFound if the job is deleted meanwhile, InsufficientStorage, Busy.
    """
    if rendering.is_document:
        if job.report is None or job.report.document is None:
            raise ValueError("the job has not succeeded")
        return RenderedDocument(service.folder.document(job.id), job.report.document.sha256)
    try:
        found = _find(job, rendering, service)
        if found is not None:
            return found
        deadline = time.monotonic() + _WAIT_SECONDS
        busy = Busy("Other documents are being converted.", {"retry_after_seconds": 60})
        if not service.converting.acquire(timeout=_WAIT_SECONDS):
            raise busy
        try:
            with held_folder(service.folder.job(job.id), deadline=deadline) as is_held:
                if not is_held:
                    raise busy
                return _find(job, rendering, service) or _convert(job, rendering, service)
        finally:
            service.converting.release()
    except FileNotFoundError:
        service.store.get(job.id, owner=job.owner)
        raise


def _find(job: Job, rendering: Rendering, service: Service) -> RenderedDocument | None:
    path = service.folder.result(job.id, rendering.name)
    digest_file = _digest_file(path)
    return RenderedDocument(path, digest_file.read_text()) if digest_file.exists() else None


def _convert(job: Job, rendering: Rendering, service: Service) -> RenderedDocument:
    """Convert, holding the job's folder. The digest is written last: if it exists, the file is whole."""
    if job.report is None or job.report.video is None:
        raise ValueError("the job has not succeeded")
    video = job.report.video
    times = FrameTimes(service.folder.pts(job.id), Fraction(video.time_base))
    # From the report: the instance may have replaced or removed the model since.
    labels = job.report.model.labels
    context = FormatContext(job.source.name or "video", video.width, video.height, labels)
    pairs, path = service.folder.document(job.id), service.folder.result(job.id, rendering.name)
    key = f"{job.id} {rendering.name}"
    size_bytes = pairs.stat().st_size
    if rendering.times:
        size_bytes += times.pts.stat().st_size * _PTS_TEXT_RATIO
    _remove_unfinished(service.folder.job(job.id))
    service.space.reserve(key, size_bytes, seconds=_RESERVATION_SECONDS)
    try:
        convert(pairs, rendering, path, context, times)
        with path.open("rb") as rendered:
            digest = hashlib.file_digest(rendered, "sha256").hexdigest()
        with atomic_write(_digest_file(path)) as file:
            file.write(digest.encode())
    finally:
        service.space.release(key)
    return RenderedDocument(path, digest)


def remove_unfinished_renderings(folder: DataFolder) -> int:
    """Remove what killed conversions left and return the number of files; running ones are left alone."""
    removed = 0
    for job_folder in folder.jobs.iterdir():
        if any(_unfinished(job_folder)):
            with held_folder(job_folder, deadline=time.monotonic()) as is_held:
                removed += _remove_unfinished(job_folder) if is_held else 0
    return removed


def _remove_unfinished(job_folder: Path) -> int:
    """The caller holds the folder. The engine writes and cleans up the document itself."""
    unfinished = [*_unfinished(job_folder)]
    for path in unfinished:
        path.unlink(missing_ok=True)
    return len(unfinished)


def _unfinished(job_folder: Path) -> Iterator[Path]:
    own = tuple(f".result.{rendering.name}." for rendering in RENDERINGS if not rendering.is_document)
    try:
        yield from (path for path in job_folder.glob(".result.*.tmp") if path.name.startswith(own))
    except FileNotFoundError:  # the job was removed
        return


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
