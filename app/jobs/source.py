"""Opening a job's video: in the job's folder, or in an ingest folder."""

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
    """The video while its job runs. `path` is valid in this process only."""

    path: Path
    file: IngestFile | None = None

    def check_unchanged(self) -> None:
        """Raise SourceChanged if the file was written to. A file in a job's folder never is."""
        if self.file is not None:
            self.file.check_unchanged()


@contextmanager
def open_video(job: Job, data: DataFolder, ingest: Ingest) -> Iterator[OpenVideo]:
    """Yield the video of `job`.

    A file of an ingest folder is opened once, so it stays the same while the job runs even if it is renamed,
    replaced or deleted. Raises SourceNotFound, and SourceChanged if its content is no longer what was
    accepted, also in place of an error of the block that this caused.
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
