"""What an instance has at rest: processes, files, descriptors, shared memory. For finding what it leaks."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import orjson
import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "e2e")]

from crash_disk import CrashDisk  # noqa: E402
from instance import Instance, make_clip, repeat_clip  # noqa: E402

__all__ = ["CHECKOUT", "CrashDisk", "Instance", "make_clip", "repeat_clip"]

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written
_AT_REST = ("framebox.sqlite3", "framebox.sqlite3-wal", "framebox.sqlite3-shm", "ballast")


def kind_of(process: psutil.Process, supervisor_pid: int) -> str:
    """What a process of the instance is; raises psutil.Error when it is gone."""
    line = " ".join(process.cmdline())
    if process.pid == supervisor_pid:
        return "supervisor"
    if "nginx: " in line:
        return "nginx master" if "nginx: master" in line else "nginx worker"
    if "gunicorn" in line:
        return "gunicorn master" if process.ppid() == supervisor_pid else "HTTP worker"
    for program in ("engine", "host", "courier"):
        if f" -m app {program} " in line:
            return program
    if "forkserver" in line:
        parent = process.parent()
        is_decoder = parent is not None and "forkserver" in " ".join(parent.cmdline())
        return "decoder" if is_decoder else "decoders' parent"
    return "other"


def processes(instance: Instance) -> dict[str, list[psutil.Process]]:
    """The instance's processes by kind; one that ends meanwhile is left out."""
    found: dict[str, list[psutil.Process]] = {}
    for process in instance.processes():
        try:
            found.setdefault(kind_of(process, instance.supervisor_pid), []).append(process)
        except psutil.Error:
            continue
    return found


def strangers(instance: Instance) -> list[str]:
    """Processes that were started for the data folder and are no descendants of the supervisor."""
    own = {process.pid for process in instance.processes()}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get("FRAMEBOX_DATA") == str(instance.data):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        except psutil.Error:
            continue
    return found


def leftover_files(data: Path) -> list[str]:
    """What lies in the data folder beside the records, the documents in any form, and what runs."""
    known = {data / name for name in _AT_REST}
    left = [path for path in data.iterdir() if path.is_file() and path not in known]
    left += [path for path in (data / "jobs").glob("*/*") if not path.name.startswith("result.")]
    left += (data / "incoming").iterdir()
    return sorted(str(path.relative_to(data)) for path in left)


def state_at_rest(instance: Instance) -> dict[str, int]:
    """Numbers that are the same before and after any work: of processes, descriptors, threads, files."""
    found = processes(instance)
    counts = Counter({kind: len(members) for kind, members in found.items()})
    for kind in ("engine", "host", "decoders' parent", "gunicorn master"):
        for process in found.get(kind, []):
            counts[f"descriptors of {kind}"] += process.num_fds()
            if kind != "host":  # its pool has as many as there once was work at a time
                counts[f"threads of {kind}"] += process.num_threads()
    counts["files in run"] = sum(path.is_file() for path in (instance.data / "run").rglob("*"))
    counts["sockets in the data folder"] = sum(path.is_socket() for path in instance.data.rglob("*"))
    counts["shared memory"] = sum(1 for _ in SHARED_MEMORY.iterdir())
    return dict(sorted(counts.items()))


def differences(before: dict[str, int], after: dict[str, int]) -> dict[str, str]:
    names = sorted({*before, *after})
    return {
        name: f"{before.get(name, 0)} → {after.get(name, 0)}"
        for name in names
        if before.get(name, 0) != after.get(name, 0)
    }


def segments_done_twice(log: Path) -> tuple[int, int]:
    """(segments finished, of them those that had been finished before), counted from the instance's log."""
    finished: Counter[tuple[str, int]] = Counter()
    with log.open("rb") as lines:
        for line in lines:
            if b'"segment finished"' in line:
                entry = orjson.loads(line)
                finished[entry["job_id"], entry["segment"]] += 1
    return finished.total(), finished.total() - len(finished)
