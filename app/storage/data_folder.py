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
  profiles/                 measurements of models
  ballast                   space in reserve for the records on a full disk
  run/                      sockets, pids, rendered configuration, metrics; emptied at every start
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.failpoints import fail_point
from app.storage.durable import fsync_folder

JOB_ID = re.compile(r"[0-9a-f]{32}")


def new_job_id() -> str:
    """128 random bits as 32 lower-case hexadecimal digits: unguessable, and safe as a file name."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The data folder's layout. `root` is absolute."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "framebox.sqlite3"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def bodies(self) -> Path:
        return self.root / "bodies"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def fetches(self) -> Path:
        return self.root / "fetches"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def web_socket(self) -> Path:
        """gunicorn's unix socket; only nginx uses it. At most 107 bytes long."""
        return self.run / "web.sock"

    @property
    def nginx_socket(self) -> Path:
        """nginx's unix socket, for requests that it makes to itself. No longer than gunicorn's."""
        return self.run / "own.sock"

    @property
    def metrics(self) -> Path:
        """A folder of counters for each program, its PROMETHEUS_MULTIPROC_DIR."""
        return self.run / "metrics"

    @property
    def wakeups(self) -> Path:
        """Where the programs wake each other: see app/wakeups.py."""
        return self.run / "wakeups"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def space_ledger(self) -> Path:
        return self.run / "space.sqlite3"

    @property
    def ballast(self) -> Path:
        return self.root / "ballast"

    @property
    def nginx(self) -> Path:
        """nginx's pid and temporary files. Its configuration is nginx.conf, beside."""
        return self.run / "nginx"

    @property
    def profiles(self) -> Path:
        """Measurements of models, kept from start to start."""
        return self.root / "profiles"

    @property
    def model_attempts(self) -> Path:
        """Which models are being loaded; forgotten when the instance starts."""
        return self.run / "models"

    def lock(self, program: str) -> Path:
        """The lock file of `program`: serve, engine, web, nginx or courier."""
        return self.locks / f"{program}.lock"

    def starts(self, program: str) -> Path:
        """The starts of `program`, so that it waits between them if it crashes again and again."""
        return self.run / f"{program}.starts"

    def create(self) -> None:
        """Create the folders that are missing, readable by this user only."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (
            self.incoming,
            self.bodies,
            self.uploads,
            self.fetches,
            self.jobs,
            self.locks,
            self.run,
            self.metrics,
            self.nginx,
        ):
            folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(self.root)

    def empty_run(self) -> None:
        """Remove `run` of an earlier start. The caller knows that none of its programs is alive."""
        if self.run.exists():
            shutil.rmtree(self.run)

    def job(self, job_id: str) -> Path:
        """The job's folder. ValueError if `job_id` is no job id: it may come from a URL."""
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
