"""From a resumable upload to a job: the upload's file becomes the job's, and nothing is written again.

The job has the upload's id. So whatever a crash leaves, it is known what became of an upload: there is a job
with its id, or there is none yet.
"""

from __future__ import annotations

import os

from app.errors import EmptyBody, UploadGone, UploadUnfinished
from app.failpoints import fail_point
from app.jobs.intake import record_job
from app.jobs.job import Job, JobRequest, VideoSource
from app.jobs.store import JobStore
from app.storage.data_folder import DataFolder
from app.storage.durable import fsync_folder
from app.storage.spool import Spool
from app.storage.uploads import HeldUpload, UploadFacts


def job_of_upload(facts: UploadFacts, store: JobStore) -> Job | None:
    """The job that the upload became, if there is one."""
    job_id = facts.about.job_id or facts.id
    return store.get_many([job_id]).get(job_id)


def accept_resumed(
    held: HeldUpload,
    *,
    spool: Spool,
    folder: DataFolder,
    store: JobStore,
    request: JobRequest,
    video_name: str | None,
) -> Job:
    """Make a whole upload a queued job's video; both are durable when this returns.

    Returns the job that an equal request had; the upload is used up all the same. Raises UploadUnfinished,
    EmptyBody, UploadGone if it was used before, IdempotencyConflict.
    """
    facts = held.settle()
    became = job_of_upload(facts, store)
    if became is not None or facts.is_spent:
        return _used_before(held, facts, became, store, request)
    _check_whole(facts)
    name = video_name[:255] if video_name else None
    source = VideoSource(facts.offset_bytes, held.sha256(), name)
    job = store.attach(request, source, size_bytes=source.size_bytes)
    if job is None:
        job = _add(held, source, spool, folder, store, request)
    held.spend(job_id=job.id)
    return job


def _used_before(
    held: HeldUpload, facts: UploadFacts, job: Job | None, store: JobStore, request: JobRequest
) -> Job:
    """The same request again is answered by its job; another one has come too late."""
    if job is not None:
        if not facts.is_spent:  # a crash came in between
            held.spend(job_id=job.id)
        again = store.attach(request, job.source, size_bytes=job.source.size_bytes)
        if again is not None:
            return again
    place = f"/v1/jobs/{job.id}" if job is not None else f"/v1/uploads/{facts.about.final_id}"
    gone = facts.about.final_id is None and job is None
    raise UploadGone("The upload has been used.", {} if gone else {"instance": place})


def _check_whole(facts: UploadFacts) -> None:
    if facts.about.concat == "partial":
        raise UploadUnfinished(
            "The upload is a part of another one, which is to be used.",
            {"offset_bytes": facts.offset_bytes, "length_bytes": None},
        )
    if not facts.is_whole:
        raise UploadUnfinished(
            "The upload is not finished.",
            {"offset_bytes": facts.offset_bytes, "length_bytes": facts.about.length_bytes},
        )
    if not facts.offset_bytes:
        raise EmptyBody("The upload is empty.")


def _add(
    held: HeldUpload,
    source: VideoSource,
    spool: Spool,
    folder: DataFolder,
    store: JobStore,
    request: JobRequest,
) -> Job:
    """The file has two names until the record is there, so that a crash loses neither job nor upload."""
    folder.remove_job(held.id)  # of a try that was cut short: the lock on the upload keeps all others away
    with spool.empty_job(held.id):
        try:
            os.link(held.video, folder.video(held.id))
            fsync_folder(folder.job(held.id))
        except BaseException:
            folder.remove_job(held.id)
            raise
        fail_point("upload_linked")
        job = record_job(held.id, source, folder=folder, store=store, request=request)
        fail_point("upload_accepted")
        return job
