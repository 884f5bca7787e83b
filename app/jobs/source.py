"""A job's video, opened where it lies: in the job's folder, or in an ingest folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.errors import FrameboxError, SourceChanged
from app.jobs.job import Job, SourceKind
from app.storage.data_folder import DataFolder
from app.storage.ingest import Ingest, IngestFile


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """The video while its job runs. Open `path` in this process alone."""

    path: Path
    file: IngestFile | None = None

    def check_unchanged(self) -> None:
        """Raise SourceChanged if somebody has written to the file; what lies in a job's folder is ours."""
        if self.file is not None:
            self.file.check_unchanged()


@contextmanager
def open_video(job: Job, data: DataFolder, ingest: Ingest) -> Iterator[OpenVideo]:
    """Yield the video of `job`.

    A file of an ingest folder is opened once: renamed, replaced or deleted, it stays the same one while the
    job runs. Raises SourceChanged if it is no longer what was accepted, also in place of whatever fault the
    block runs into because of that; SourceNotFound if it is gone.
    """
    if job.source.kind is not SourceKind.PATH or job.source.address is None:
        yield OpenVideo(data.video(job.id))
        return
    with ingest.open(job.source.address) as file:
        file.check_unchanged(job.source.identity)
        try:
            yield OpenVideo(file.path, file)
        except SourceChanged:
            raise
        except FrameboxError:
            file.check_unchanged()
            raise
