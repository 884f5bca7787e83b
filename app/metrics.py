"""Every metric of the instance, declared once for all programs.

Each program has a folder of memory-mapped files beside those of the others. PROMETHEUS_MULTIPROC_DIR names it
and is set before a program starts, because prometheus-client reads it when it is imported. Without it, a
process counts only for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_FILE_KINDS = ("counter", "histogram")  # each process has one file of each
_FILE_BYTES = 1024 * 1024  # many times the size of ours
# Most answers take milliseconds; joining large uploads or rendering a long document takes minutes.
_SERVING_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)
_WAITING_SECONDS = (0.1, 1, 10, 60, 600, 3600, 36_000)  # for a body or a job


class Metrics:
    """The metrics of one process. Create it once and pass it on."""

    def __init__(self) -> None:
        if FOLDER_VARIABLE in os.environ:
            for kind in _FILE_KINDS:
                _allocate(Path(os.environ[FOLDER_VARIABLE]) / f"{kind}_{os.getpid()}.db")
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="framebox", registry=self.registry)
        histogram = partial(Histogram, namespace="framebox", registry=self.registry)
        self.http_requests = counter(
            "http_requests", "Requests answered, by method, route and status.", ["method", "route", "status"]
        )
        self.http_request_seconds = histogram(
            "http_request_seconds",
            "Time that the service took to answer, by method and route: from the arrival of a request to the "
            "headers of its answer, without the waits in framebox_http_wait_seconds.",
            ["method", "route"],
            buckets=_SERVING_SECONDS,
        )
        self.http_wait_seconds = histogram(
            "http_wait_seconds",
            "Time that requests waited, by reason: body, for the client to send it (nginx receives raw "
            "videos of known length before the request arrives here); job, for the job to end.",
            ["reason"],
            buckets=_WAITING_SECONDS,
        )
        self.uploads = counter(
            "uploads",
            "Uploads by outcome: accepted, attached (an earlier job answers), or an error's code.",
            ["outcome"],
        )
        self.upload_bytes = counter("upload_bytes", "Bytes of video written to the spool.")
        self.fetches = counter(
            "fetches",
            "Videos fetched from URLs, by outcome: fetched, not_wanted, or an error's code.",
            ["outcome"],
        )
        self.fetched_bytes = counter("fetched_bytes", "Bytes of video received from URLs.")
        self.deliveries = counter(
            "deliveries",
            "Attempts to deliver callbacks, by outcome: delivered, failed, given_up.",
            ["outcome"],
        )
        self.jobs_ended = counter(
            "jobs_ended",
            "Runs of jobs that ended, by the state of the job afterwards: succeeded, failed, cancelled, or "
            "queued if another run resumes it.",
            ["state"],
        )
        self.frames_analysed = counter("frames_analysed", "Frames that were analysed.")
        self.stage_seconds = counter(
            "stage_seconds",
            "Time that segments spent, by stage: wait_for_frames, wait_for_device, encode.",
            ["stage"],
        )
        self.segments = counter("segments", "Segments finished, by outcome: whole, damaged.", ["outcome"])
        self.segments_retried = counter(
            "segments_retried",
            "Segments that were run again because their host ended, by reason.",
            ["reason"],
        )

    def expose(self, collectors: Sequence[Collector] = ()) -> bytes:
        """Return the metrics of all processes and of `collectors` in Prometheus' text format 0.0.4."""
        registry = self.registry
        if FOLDER_VARIABLE in os.environ:
            registry = CollectorRegistry()
            _EveryProgram(registry)  # type: ignore[no-untyped-call]
        own = CollectorRegistry()
        for collector in collectors:
            own.register(collector)
        return generate_latest(registry) + generate_latest(own)


def _allocate(path: Path) -> None:
    """Take the disk space of a counter file before prometheus-client makes it.

    It would make a sparse file, and writing to a hole of a memory-mapped file on a full disk is a SIGBUS.
    Other processes read it as soon as it is there, so it gets its name once it has its size.
    """
    if path.exists():
        return
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)


class _EveryProgram(MultiProcessCollector):
    """Adds up what all programs wrote, each in its folder beside this one's.

    They have separate folders because processes in two containers may have the same id.
    """

    def collect(self) -> Iterable[Metric]:
        while True:
            files = Path(os.environ[FOLDER_VARIABLE]).parent.glob("*/*.db")
            try:
                return self.merge([str(file) for file in files])  # type: ignore[no-untyped-call, no-any-return]
            except FileNotFoundError:  # `retire_counters` has moved its contents to another file
                continue


def retire_counters(pid: int | None = None) -> None:
    """Add the counters of a process that has ended to one file; None: those of all processes of this program.

    Otherwise each process would leave its files behind forever. Only one caller at a time may do this, and
    only once the processes have ended. The common file is made when a program first starts: if the disk is
    full later, the space of ended processes is then free for the next ones.
    """
    if FOLDER_VARIABLE not in os.environ:
        return
    folder = Path(os.environ[FOLDER_VARIABLE])
    for kind in _FILE_KINDS:
        total = folder / f"{kind}_0.db"
        ended = [path for path in folder.glob(f"{kind}_{'*' if pid is None else pid}.db") if path != total]
        try:
            _allocate(total)
        except OSError:  # the disk was full from the start
            return
        for path in ended:
            sums = MmapedDict(str(total))  # type: ignore[no-untyped-call]
            try:
                for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
                    sums.write_value(key, sums.read_value(key)[0] + value, timestamp)  # type: ignore[no-untyped-call]
            finally:
                sums.close()  # type: ignore[no-untyped-call]
            path.unlink()
