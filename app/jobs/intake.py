"""The one way in: a video, however it arrives, becomes the video of a queued job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from app.egress.targets import Target
from app.errors import EmptyBody, UploadGone, UploadUnfinished
from app.failpoints import fail_point
from app.jobs.job import Job, JobRequest, SourceKind, VideoSource
from app.jobs.store import JobStore
from app.storage.bodies import SpooledBody
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.ingest import Ingest
from app.storage.spool import ReceivedUpload, Spool, Upload
from app.storage.uploads import HeldUpload, UploadFacts

_LONGEST_NAME = 255  # characters; names are for display only


@dataclass(frozen=True, slots=True)
class Intake:
    """Makes jobs: one method a source. Safe to use from many threads and processes at once.

    When a method returns, job and video survive a power failure. If another job already answers the request
    (`app.jobs.attach`), that job is returned and the video is dropped. All raise IdempotencyConflict.
    """

    folder: DataFolder
    store: JobStore
    spool: Spool
    ingest: Ingest

    def from_stream(
        self, request: JobRequest, receive: Callable[[Upload], str | None], *, expected_bytes: int | None
    ) -> Job:
        """Take a body that arrives through this process. `receive` writes it and returns the file's name.

        `expected_bytes` is None for a body of unknown length; the envelope of a form counts. Raises what
        `receive` raises, InsufficientStorage.
        """
        key = request.request_id
        with self.spool.receive(new_job_id(), key=key, expected_bytes=expected_bytes) as upload:
            name = receive(upload)
            return self._publish(request, upload, name)

    def from_body(
        self, request: JobRequest, body: SpooledBody, *, check: Callable[[SpooledBody], None]
    ) -> Job:
        """Take a body that nginx wrote to disk. `check` may raise to refuse it once it is taken.

        Raises what `check` raises, IncompleteBody if nginx has removed the file.
        """
        with self.spool.take(new_job_id(), key=request.request_id, body=body) as upload:
            check(body)
            return self._publish(request, upload, None)

    def from_upload(self, request: JobRequest, held: HeldUpload, name: str | None) -> Job:
        """Take the file of a finished resumable upload, without a copy. The upload is used up.

        The job has the upload's id, so that after a crash it is known whether the upload became a job. Raises
        UploadUnfinished, EmptyBody, UploadGone if it was used for another request.
        """
        facts = held.settle()
        became = self.job_of_upload(facts)
        if became is not None:  # the same request gets that job again
            if not facts.is_spent:  # a crash came in between
                held.spend(job_id=became.id)
            again = self.store.attach(request, became.source)
            if again is None:
                raise used_upload(became.id, None)
            return again
        if facts.is_spent:
            raise used_upload(None, facts.about.final_id)
        if not facts.is_whole or facts.about.is_part:
            detail, length = "The upload is not finished.", facts.about.length_bytes
            if facts.about.is_part:
                detail, length = "The upload is a part of another one, which is to be used.", None
            raise UploadUnfinished(detail, {"offset_bytes": facts.offset_bytes, "length_bytes": length})
        if not facts.offset_bytes:
            raise EmptyBody("The upload is empty.")
        source = VideoSource(facts.offset_bytes, held.sha256(), _display_name(name))
        job = self.store.attach(request, source)
        if job is None:
            self.folder.remove_job(held.id)  # left by a crash; the lock on the upload keeps others away
            with self.spool.empty_job(held.id):
                try:
                    held.link_to(self.folder.video(held.id))
                except BaseException:
                    self.folder.remove_job(held.id)
                    raise
                fail_point("upload_linked")
                job = self._add(request, held.id, source)
                fail_point("upload_accepted")
        held.spend(job_id=job.id)
        return job

    def from_path(self, request: JobRequest, path: str) -> Job:
        """Take a file of an ingest folder, where it lies. Raises InvalidSource, SourceNotFound, EmptyBody."""
        with self.ingest.open(path) as file:
            identity = file.identity
        if not identity.size_bytes:
            raise EmptyBody("The file is empty.")
        name = _display_name(Path(path).name)
        return self._add_named(
            request, VideoSource(identity.size_bytes, None, name, SourceKind.PATH, path, identity)
        )

    def from_url(self, request: JobRequest, url: str, target: Target) -> Job:
        """Take a video that the courier is to fetch from `url`, which leads to `target`."""
        source = VideoSource(
            size_bytes=None,
            sha256=None,
            name=_display_name(PurePosixPath(unquote(target.resource.partition("?")[0])).name),
            kind=SourceKind.URL,
            address=target.shown,
            received_bytes=0,
            address_sha256=hashlib.sha256(url.encode()).hexdigest(),
            url=url,
        )
        return self._add_named(request, source)

    def job_of_upload(self, facts: UploadFacts) -> Job | None:
        """Return the job that a resumable upload has become; None if there is none."""
        job_id = facts.about.job_id or facts.id
        return self.store.find([job_id], owner=facts.about.owner).get(job_id)

    def _publish(self, request: JobRequest, upload: ReceivedUpload, name: str | None) -> Job:
        """Make a received upload a job while it is still held, so that no clean-up takes its folder."""
        source = VideoSource(upload.size_bytes, upload.sha256, _display_name(name))
        earlier = self.store.attach(request, source)  # before 100 GB are synced for nothing
        if earlier is not None:
            return earlier
        upload.finish()
        self.spool.publish(upload)
        fail_point("upload_published")
        job = self._add(request, upload.job_id, source)
        fail_point("job_accepted")
        return job

    def _add_named(self, request: JobRequest, source: VideoSource) -> Job:
        """Make a job of a video that is not in the data folder."""
        earlier = self.store.attach(request, source)
        if earlier is not None:
            return earlier
        job_id = new_job_id()
        with self.spool.empty_job(job_id):
            fail_point("empty_job_made")
            return self._add(request, job_id, source)

    def _add(self, request: JobRequest, job_id: str, source: VideoSource) -> Job:
        """Add the record of a job whose folder exists and is held. The folder goes if it is not needed."""
        try:
            job = self.store.add(job_id, request, source)
        except BaseException:
            self.folder.remove_job(job_id)
            raise
        if job.id != job_id:  # an equal request was faster
            self.folder.remove_job(job_id)
        return job


def used_upload(job_id: str | None, final_id: str | None) -> UploadGone:
    """Return the error of an upload whose bytes went into a job or another upload, if that is known."""
    used_by = {"job_id": job_id, "upload_id": None if job_id else final_id}
    return UploadGone("The upload has been used.", {name: id_ for name, id_ in used_by.items() if id_})


def _display_name(name: str | None) -> str | None:
    return name[:_LONGEST_NAME] if name else None
