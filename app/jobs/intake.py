"""From an upload to a job: both durable, or neither there."""

from __future__ import annotations

from pathlib import Path

from app.errors import EmptyBody
from app.failpoints import fail_point
from app.jobs.job import Job, JobRequest, SourceKind, VideoSource
from app.jobs.store import JobStore
from app.storage.data_folder import JOB_ID, DataFolder, new_job_id
from app.storage.ingest import Ingest
from app.storage.spool import ReceivedUpload, Spool, remove_unowned


def accept_job(
    upload: ReceivedUpload,
    *,
    spool: Spool,
    folder: DataFolder,
    store: JobStore,
    request: JobRequest,
    video_name: str | None,
) -> Job:
    """Make a received upload a queued job. When this returns, video and record survive a power cut.

    Returns the job that the request was given before, if its key or its content and options had one: then
    the upload is dropped. Raises IdempotencyConflict. Call it while the upload is still held (inside
    `Spool.receive` or `Spool.take`), so that no clean-up takes the folder for a leftover before the record
    is there.
    """
    source = VideoSource(upload.size_bytes, upload.sha256, video_name[:255] if video_name else None)
    earlier = store.attach(request, source, size_bytes=upload.size_bytes)
    if earlier is not None:
        return earlier
    upload.finish()
    spool.publish(upload)
    fail_point("upload_published")
    job = record_job(upload.job_id, source, folder=folder, store=store, request=request)
    fail_point("job_accepted")
    return job


def record_job(
    job_id: str, source: VideoSource, *, folder: DataFolder, store: JobStore, request: JobRequest
) -> Job:
    """Add the record of a job whose folder is there, and whose lock the caller holds; durable on return.

    The folder goes if that fails, or if an equal request was faster: then its job is returned.
    """
    try:
        job = store.add(job_id, request, source)
    except BaseException:
        folder.remove_job(job_id)
        raise
    if job.id != job_id:
        folder.remove_job(job_id)
    return job


def accept_ingested(
    path: str, *, ingest: Ingest, spool: Spool, folder: DataFolder, store: JobStore, request: JobRequest
) -> Job:
    """Make a file of an ingest folder a queued job's video, where it lies. The job is durable on return.

    Returns the job that an equal request had. Raises InvalidSource, SourceNotFound, IdempotencyConflict.
    """
    with ingest.open(path) as file:
        if not file.identity.size_bytes:
            raise EmptyBody("The file is empty.")
        source = VideoSource(
            file.identity.size_bytes, None, Path(path).name[:255], SourceKind.PATH, path, file.identity
        )
    return accept_named(source, spool=spool, folder=folder, store=store, request=request)


def accept_named(
    source: VideoSource, *, spool: Spool, folder: DataFolder, store: JobStore, request: JobRequest
) -> Job:
    """Make `source`, of which nothing lies in the data folder, a queued job's video; durable on return."""
    earlier = store.attach(request, source, size_bytes=source.size_bytes)
    if earlier is not None:
        return earlier
    job_id = new_job_id()
    with spool.empty_job(job_id):
        fail_point("empty_job_made")
        return record_job(job_id, source, folder=folder, store=store, request=request)


def remove_leftovers(folder: DataFolder, spool: Spool, store: JobStore) -> int:
    """Remove uploads and job folders that a crash left without an owner; return how many.

    Safe while other processes receive uploads: theirs are locked until their record is there.
    """
    return spool.remove_leftovers() + remove_orphans(folder, store)


def remove_orphans(folder: DataFolder, store: JobStore) -> int:
    """Remove the folders of jobs of which there is no record; return how many."""
    removed, known = 0, store.ids()
    for job_folder in folder.jobs.iterdir():
        job_id = job_folder.name
        if JOB_ID.fullmatch(job_id) and job_id not in known:
            removed += remove_unowned(job_folder, is_leftover=lambda: job_id not in store.ids())  # noqa: B023
    return removed
