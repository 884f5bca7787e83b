"""A stand-in for the engine: real job store, real files, no video. Run as a process of its own.

The "video" of a job is its orders, one JSON object: ``frames`` (how many pairs, default 3), ``problem``
(code of an error to fail with), ``hold`` (path: wait until that file exists), ``steps`` (progress writes),
``complete`` (default true). Frames follow each other after 40 ms, from 1.4 s on.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from sample_reports import SANDBOX, VIDEO, completeness, finished_report, model_report, ready_model
from stores import Stores

from app import errors
from app.jobs.job import Job, JobState, Progress
from app.jobs.source import open_video
from app.settings import load_settings
from app.storage.data_folder import DataFolder
from app.storage.durable import atomic_write
from app.storage.ingest import Ingest
from app.wakeups import Wakeups

MODELS = (ready_model("hog-people", "person"), ready_model("other", "cat", "dog"))
VIDEO_REPORT = VIDEO.model_copy(update={"width": 768, "height": 432, "time_base": "1/25"})
LONGEST_ORDER_BYTES = 4096
PROBLEMS = {"no_video_stream": errors.NoVideoStream("There is no video stream in the file.")}


class DoubleEngine:
    """Works through the jobs of one data folder, one at a time."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._ingest = Ingest(load_settings().ingest)
        self._store = Stores(folder.database, Wakeups(folder.wakeups))
        self._store.database.create()
        self._epoch = self._store.queue.begin_epoch(pid=os.getpid())

    def run(self) -> None:
        while True:
            self._beat()
            job = self._store.queue.claim(self._epoch)
            if job is not None:
                self._work(job)
            else:
                time.sleep(0.01)

    def _beat(self) -> None:
        self._store.heartbeats.report_engine(self._epoch, ready=True, models=MODELS, sandbox=SANDBOX)

    def _work(self, job: Job) -> None:
        try:
            with open_video(job, self._folder, self._ingest) as video:
                text = video.path.read_bytes().rstrip(b" ")
        except errors.FrameboxError as fault:
            self._store.queue.finish(job.id, self._epoch, JobState.FAILED, problem=fault.to_problem())
            return
        is_order = len(text) < LONGEST_ORDER_BYTES and text.startswith(b'{"')  # random bytes may start with {
        orders: dict[str, Any] = orjson.loads(text) if is_order else {}
        frames = orders.get("frames", 3)
        for step in range(orders.get("steps", 0)):
            self._store.queue.update(job.id, self._epoch, Progress(step, frames, step, None))
        if not self._hold(job, orders):
            return
        if "problem" in orders:
            problem = PROBLEMS[orders["problem"]].to_problem()
            self._store.queue.finish(job.id, self._epoch, JobState.FAILED, problem=problem)
            return
        self._finish(job, frames, complete=orders.get("complete", True))

    def _hold(self, job: Job, orders: dict[str, Any]) -> bool:
        """Wait for the order to go on; False if the job was cancelled meanwhile."""
        while "hold" in orders and not Path(orders["hold"]).exists():
            self._beat()
            if job.id in self._store.queue.cancel_requests(self._epoch):
                self._store.queue.finish(job.id, self._epoch, JobState.CANCELLED)
                return False
            time.sleep(0.01)
        return True

    def _finish(self, job: Job, frames: int, *, complete: bool) -> None:
        digest = hashlib.sha256()
        with atomic_write(self._folder.pts(job.id)) as file:
            file.writelines(struct.pack("<q", 35 + frame_id) for frame_id in range(frames))
        with atomic_write(self._folder.document(job.id)) as file:
            for line in document(frames):
                digest.update(line)
                file.write(line)
            size_bytes = file.tell()
        self._store.queue.finish(
            job.id,
            self._epoch,
            JobState.SUCCEEDED,
            report=finished_report(
                size_bytes,
                digest.hexdigest(),
                video=VIDEO_REPORT,
                model=model_report(job.model),
                found=completeness(frames) if complete else completeness(frames + 1, missing=1),
            ),
        )


def document(frames: int) -> list[bytes]:
    """The lines of the document that the double writes for so many frames."""
    pair = b'[%d,[{"box":[1.0,2.0,30.0,40.0],"label":"person","score":0.9}]]'
    lines = [pair % frame_id + b",\n" for frame_id in range(frames - 1)]
    return [b"[\n", *lines, pair % (frames - 1) + b"\n", b"]\n"]


if __name__ == "__main__":
    DoubleEngine(DataFolder(Path(sys.argv[1]))).run()
