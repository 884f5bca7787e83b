"""Fetches one video from its URL: in as many requests as it takes, without mixing two versions of it.

The bytes go into a resumable upload of the courier's own. So after any end of this process the next one
continues with what is on disk, and hashes nothing again. The job's record keeps what the server said of the
bytes (its entity tag).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from urllib3.response import HTTPResponse

from app.courier.answers import Received, Verdict, judge, retry_after_seconds
from app.egress.connection import Outbound, Unreachable, read_piece
from app.egress.targets import Target, TargetRefused, parse_target
from app.errors import (
    BodyTooLarge,
    EmptyBody,
    FrameboxError,
    InsufficientStorage,
    SourceChanged,
    SourceRefused,
    SourceUnreachable,
)
from app.failpoints import fail_point
from app.jobs.fetches import Fetch, FetchStore, SourceVersion
from app.jobs.job import Waiting
from app.metrics import Metrics
from app.storage.data_folder import DataFolder
from app.storage.uploads import About, HeldUpload, Uploads

_log = structlog.get_logger()

READ_BYTES = 256 * 1024
PROGRESS_SECONDS = 2.0  # between two writes of a fetch's progress, and looks whether it is still wanted
NO_ROOM_SECONDS = 5.0
PACE_SECONDS = 60.0  # a server that sends less than PACE_BYTES in this time counts as gone
PACE_BYTES = 64 * 1024
MOST_RETRY_AFTER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """The limits of one fetch."""

    max_bytes: int  # of a video
    max_seconds: float = 86_400.0  # from the job's acceptance to the last byte
    failures: int = 12  # in a row without progress: some 5 minutes
    changes: int = 3  # of the video during the fetch
    first_pause_seconds: float = 0.2  # after a failure; doubled with each in a row
    longest_pause_seconds: float = 60.0


class _NotWanted(Exception):
    """The job was cancelled or deleted meanwhile."""


class _Stopped(Exception):
    """This process stops; the next one resumes the fetch."""


class _TryLater(Exception):
    """The server cannot answer now."""

    def __init__(self, status: int, seconds: float) -> None:
        super().__init__(status, seconds)
        self.status = status
        self.seconds = seconds


@dataclass(slots=True)
class _Run:
    """The state of one fetch in this process."""

    fetch: Fetch
    target: Target
    held: HeldUpload
    version: SourceVersion  # of the bytes that have arrived
    size_bytes: int  # that have arrived
    farthest_bytes: int  # that ever had arrived
    failures: int = 0
    changes: int = 0
    last_fault: str = ""
    last_status: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.size_bytes == self.version.expected_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Fetches one video a call. Safe to use from many threads."""

    data: DataFolder
    fetches: FetchStore
    uploads: Uploads
    outbound: Outbound
    limits: FetchLimits
    metrics: Metrics
    stop: threading.Event

    def recover(self) -> None:
        """Correct what a crash or a power failure left. Call it before the first fetch."""
        self.uploads.recover()

    def remove_unwanted(self, under_way: Collection[str]) -> None:
        """Remove what was fetched for jobs that no longer want it, but for fetches that are under way."""
        for folder in self.uploads.folders():
            if folder.name not in under_way and self.fetches.get(folder.name) is None:
                self.uploads.remove(folder.name)

    def fetch(self, job_id: str) -> None:
        """Fetch the job's video to its place, or fail the job; return early if this process is to stop.

        Does nothing for a job that was cancelled or deleted, except removing what was fetched for it.
        """
        fetch = self.fetches.get(job_id)
        if fetch is None:
            return
        try:
            self._bring(fetch)
            outcome = "fetched"
        except (_NotWanted, FileNotFoundError):  # FileNotFoundError: the job's folder is gone
            outcome = "not_wanted"
        except _Stopped:
            return
        except FrameboxError as error:
            outcome = "not_wanted"
            if self.fetches.fail(job_id, error):
                outcome = error.code
                _log.warning("video not fetched", code=error.code, detail=error.detail)
        self.uploads.remove(job_id)
        if outcome != "fetched":
            with suppress(FileNotFoundError):
                self.data.remove_inputs(job_id)
        self.metrics.fetches.labels(outcome).inc()
        _log.info("fetch ended", outcome=outcome)

    def _bring(self, fetch: Fetch) -> None:
        """Receive the whole video and give its file to the job. Raises the error that ends the fetch."""
        with self.uploads.hold_new(fetch.job_id, About(fetch.owner, fetch.version.expected_bytes)) as held:
            size = held.settle().offset_bytes
            try:
                target = parse_target(fetch.url, self.outbound.rules)
                run = _Run(fetch, target, held, fetch.version, size_bytes=size, farthest_bytes=size)
                while not run.is_whole:
                    self._check_time(run)
                    try:
                        self._try(run)
                    except InsufficientStorage:
                        _log.warning("no room on disk; the fetch waits")
                        if not self.fetches.say_waiting(fetch.job_id, Waiting.DISK_SPACE):
                            raise _NotWanted from None
                        self._pause(NO_ROOM_SECONDS)
                    except Unreachable as fault:
                        self._note_progress(run)
                        self._count_failure(run, str(fault), None, 0.0)
                    except _TryLater as later:
                        self._count_failure(run, f"it answered {later.status}", later.status, later.seconds)
            except TargetRefused as refusal:  # perhaps the rules have changed since it was accepted
                raise SourceRefused(
                    f"url: {refusal.reason}.", {"parameter": "url", "allowed": refusal.allowed}
                ) from refusal
            held.link_to(self.data.video(fetch.job_id))
            fail_point("fetch_linked")
            if not self.fetches.complete(fetch.job_id, run.size_bytes, held.sha256()):
                raise _NotWanted
            fail_point("fetch_completed")

    # ---- one request after the other

    def _try(self, run: _Run) -> None:
        """Receive what one request brings. Raises Unreachable, _TryLater, or the error that ends it all."""
        asked = Received(run.size_bytes, run.version)
        with self.outbound.request("GET", run.target, headers=asked.headers()) as response:
            verdict, version = judge(response.status, response.headers, asked)
            if verdict is Verdict.LATER:
                raise _TryLater(response.status, retry_after_seconds(response.headers.get("Retry-After")))
            if verdict is Verdict.ENDLESS:
                raise Unreachable("it does not say how long the video is")
            if verdict is Verdict.CHANGED:
                self._count_change(run)
                self._start_over(run, SourceVersion())
                return
            if verdict is Verdict.FROM_START:  # the bytes of an earlier answer are dropped
                is_same = replace(version, modified=run.version.modified) == run.version
                if run.size_bytes and not is_same:
                    self._count_change(run)
                if version.expected_bytes == 0:
                    raise EmptyBody("The video at the URL is empty.")
                self._check_size(version.expected_bytes or 0)
                self._start_over(run, version)
            run.held.renew_promise()
            try:
                run.held.append(self._pieces(run, response))
            finally:
                run.size_bytes = run.held.facts().offset_bytes
            if run.version.expected_bytes is None:
                if not run.size_bytes:
                    raise EmptyBody("The video at the URL is empty.")
                run.version = replace(run.version, expected_bytes=run.size_bytes)
            elif not run.is_whole:
                raise Unreachable("it sent less than it said")

    def _start_over(self, run: _Run, version: SourceVersion) -> None:
        """Drop the bytes, then record what is to come in their place."""
        run.size_bytes, run.version = 0, version
        run.held.start_over(version.expected_bytes)
        if not self.fetches.begin(run.fetch.job_id, version):
            raise _NotWanted

    def _pieces(self, run: _Run, response: HTTPResponse) -> Iterator[bytes]:
        """Yield the body while it fits and is wanted; record the progress now and then.

        Raises Unreachable if it breaks off, is too slow or too long, BodyTooLarge, _NotWanted, _Stopped.
        """
        noted_at = pace_from = time.monotonic()
        received, expected = 0, run.version.expected_bytes  # received: since `pace_from`
        while piece := read_piece(response, READ_BYTES):
            coming = run.size_bytes + len(piece)
            if expected is not None and coming > expected:
                raise Unreachable("it sends more than it said")
            self._check_size(coming)
            yield piece
            run.size_bytes = coming
            self.metrics.fetched_bytes.inc(len(piece))
            if time.monotonic() - noted_at >= PROGRESS_SECONDS:
                self._note_progress(run)
                self._check_time(run)
                noted_at = time.monotonic()
            if self.stop.is_set():
                raise _Stopped
            received += len(piece)
            if time.monotonic() - pace_from >= PACE_SECONDS:
                if received < PACE_BYTES:
                    raise Unreachable("it sends next to nothing")
                pace_from, received = time.monotonic(), 0

    def _note_progress(self, run: _Run) -> None:
        if not self.fetches.progress(run.fetch.job_id, run.size_bytes):
            raise _NotWanted

    # ---- when to give up

    def _count_failure(self, run: _Run, fault: str, status: int | None, least_seconds: float) -> None:
        """Wait before the next try, longer with each try in a row that brought nothing new."""
        run.last_fault, run.last_status = fault, status
        if run.size_bytes > run.farthest_bytes:
            run.farthest_bytes, run.failures = run.size_bytes, 0
        run.failures += 1
        if run.failures > self.limits.failures:
            raise _unreachable(run, f"{run.failures} tries in a row brought nothing")
        pause = min(
            self.limits.first_pause_seconds * 2 ** (run.failures - 1), self.limits.longest_pause_seconds
        )
        _log.info("fetch interrupted", fault=fault, received_bytes=run.size_bytes)
        self._pause(max(pause * random.uniform(0.8, 1.2), min(least_seconds, MOST_RETRY_AFTER_SECONDS)))  # noqa: S311

    def _count_change(self, run: _Run) -> None:
        run.changes += 1
        if run.changes > self.limits.changes:
            raise SourceChanged("The video at the URL changes faster than it can be fetched.")

    def _check_size(self, size_bytes: int) -> None:
        limit = self.limits.max_bytes
        if size_bytes > limit:
            raise BodyTooLarge(f"The video is longer than {limit} bytes.", {"limit_bytes": limit})

    def _check_time(self, run: _Run) -> None:
        if time.time() - run.fetch.created_at > self.limits.max_seconds:
            raise _unreachable(run, f"it was not there after {self.limits.max_seconds:.0f} seconds")

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise _Stopped


def _unreachable(run: _Run, why: str) -> SourceUnreachable:
    last = f" At last: {run.last_fault}." if run.last_fault else ""
    extensions = {} if run.last_status is None else {"source_status": run.last_status}
    return SourceUnreachable(f"The video could not be fetched: {why}.{last}", extensions)
