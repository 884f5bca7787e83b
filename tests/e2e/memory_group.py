"""What a whole instance takes of memory: a cgroup around it, and the largest of each kind of process."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import Self

import psutil
from instance import Instance

MIB = 1024 * 1024
SAMPLE_SECONDS = 0.1


class MemoryGroup:
    """A memory cgroup of our own, version 1 or 2."""

    def __init__(self, folder: Path, limit_file: str, peak_file: str, usage_file: str) -> None:
        self.folder = folder
        self._limit_file = folder / limit_file
        self._peak_file = folder / peak_file
        self._usage_file = folder / usage_file

    @classmethod
    def create(cls, name: str, *, limit_bytes: int) -> MemoryGroup:
        """Raises OSError where this user may not."""
        version_1 = Path("/sys/fs/cgroup/memory")
        if version_1.is_dir():
            files = ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes")
            group = cls(version_1 / name, *files)
        else:
            group = cls(Path("/sys/fs/cgroup") / name, "memory.max", "memory.peak", "memory.current")
        group.folder.mkdir()
        group._limit_file.write_text(str(limit_bytes))
        return group

    def enter(self) -> None:
        """Move the calling process into the group; call between fork and exec."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        """The most that was ever charged to the group, page cache included."""
        return int(self._peak_file.read_text())

    def held_bytes(self) -> int:
        """What the kernel cannot take back at once: memory of processes, shared memory."""
        found = _numbers(self.folder / "memory.stat")
        return found.get("total_rss", found.get("anon", 0)) + found.get("total_shmem", found.get("shmem", 0))

    def out_of_memory_kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        version_1, version_2 = self.folder / "memory.oom_control", self.folder / "memory.events"
        return _numbers(version_1 if version_1.exists() else version_2)["oom_kill"]

    def remove(self) -> None:
        self.folder.rmdir()


def _numbers(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in file.read_text().splitlines())}


class PeakWatch:
    """Samples the resident memory of every process of an instance; keeps each kind's largest."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peaks: dict[str, int] = defaultdict(int)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            for process in self._instance.processes():
                try:
                    kind = kind_of(process)
                    self.peaks[kind] = max(self.peaks[kind], process.memory_info().rss)
                except psutil.Error:
                    continue  # it has ended since it was listed


def kind_of(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    for word, kind in (
        ("supervisord", "supervisor"),
        ("gunicorn", "web"),
        ("nginx", "nginx"),
        ("app engine", "engine"),
        ("app host", "host"),
        ("app courier", "courier"),
        ("forkserver", "decoder"),
        ("resource_tracker", "tracker"),
    ):
        if word in line:
            return kind
    return "other"
