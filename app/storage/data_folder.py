"""The layout of the data folder. All names are decided here.

<root>/
  framebox.sqlite3          the jobs' records
  locks/<program>.lock      held (flock) by the one serve, engine, web, nginx of this folder
  incoming/<id>/video       an upload under way; its folder becomes the job's by one rename
  bodies/<xx>/<digits>      a body that nginx writes to disk: see bodies.py
  uploads/<id>/             a resumable upload: see uploads.py
  fetches/<id>/             a video that is being fetched: the same, with the id of its job
  jobs/<id>/video           the spooled video, whole
  jobs/<id>/parts/          finished segments
  jobs/<id>/result.pairs    the document; result.<rendering>, with its .sha256: the same otherwise
  jobs/<id>/result.pts      the time stamps of the document's frames
  verdicts/                 what trials found out about models
  ballast                   space in reserve for the records on a full disk
  run/                      sockets, pids, rendered configuration, metrics; emptied at every start
"""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

from app.failpoints import fail_point
from app.storage.durable import fsync_folder

JOB_ID = re.compile(r"[0-9a-f]{32}")


def new_job_id() -> str:
    """Return 128 random bits as 32 lower-case hexadecimal digits: unguessable, and safe as a file name."""
    return secrets.token_hex(16)


class DataFolder:
    """The data folder's layout. `root` is absolute."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "framebox.sqlite3"
        self.incoming = root / "incoming"
        self.bodies = root / "bodies"
        self.uploads = root / "uploads"
        self.fetches = root / "fetches"
        self.jobs = root / "jobs"
        self.locks = root / "locks"
        self.ballast = root / "ballast"
        self.verdicts = root / "verdicts"  # of the trials of models, kept from start to start
        self.run = run = root / "run"
        self.web_socket = run / "web.sock"  # gunicorn's; only nginx uses it. At most 107 bytes long
        self.nginx_socket = run / "own.sock"  # for nginx's requests to itself; no longer than the other
        self.metrics = run / "metrics"  # a folder of counters a program, its PROMETHEUS_MULTIPROC_DIR
        self.wakeups = run / "wakeups"  # where the programs wake each other: see app/wakeups.py
        self.space_ledger = run / "space.sqlite3"
        self.nginx = run / "nginx"  # its pid and temporary files; its configuration is nginx.conf, beside

    def lock(self, program: str) -> Path:
        """Return the lock file of `program`: serve, engine, web, nginx or courier."""
        return self.locks / f"{program}.lock"

    def starts(self, program: str) -> Path:
        """Return the record of when `program` started: it waits between starts if it keeps crashing."""
        return self.run / f"{program}.starts"

    def create(self) -> None:
        """Create the folders that are missing, readable by this user only."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = (self.incoming, self.bodies, self.uploads, self.fetches, self.jobs, self.locks)
        for folder in (*kept, self.run, self.metrics, self.nginx):
            folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(self.root)

    def empty_run(self) -> None:
        """Remove `run` of an earlier start. The caller knows that none of its programs is alive."""
        if self.run.exists():
            shutil.rmtree(self.run)

    def job(self, job_id: str) -> Path:
        """Return the job's folder. ValueError if `job_id` is not a job id: it may come from a URL."""
        if not JOB_ID.fullmatch(job_id):
            raise ValueError("not a job id")
        return self.jobs / job_id

    def video(self, job_id: str) -> Path:
        return self.job(job_id) / "video"

    def parts(self, job_id: str) -> Path:
        return self.job(job_id) / "parts"

    def document(self, job_id: str) -> Path:
        return self.result(job_id, "pairs")

    def pts(self, job_id: str) -> Path:
        return self.job(job_id) / "result.pts"

    def result(self, job_id: str, rendering_name: str) -> Path:
        return self.job(job_id) / f"result.{rendering_name}"

    def remove_parts(self, job_id: str) -> None:
        """Remove the job's parts; absent is fine."""
        folder = self.parts(job_id)
        if folder.exists():
            shutil.rmtree(folder)

    def remove_inputs(self, job_id: str) -> None:
        """Remove what an ended job no longer needs, its parts and its video; absent is fine."""
        self.remove_parts(job_id)
        fail_point("parts_removed")
        self.video(job_id).unlink(missing_ok=True)

    def remove_job(self, job_id: str) -> None:
        """Remove the job's folder and everything in it; absent is fine."""
        folder = self.job(job_id)
        if folder.exists():
            shutil.rmtree(folder)
            fsync_folder(self.jobs)
