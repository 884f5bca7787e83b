"""A whole instance inside a memory cgroup of 4 GB: a long video costs no more than a short one."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
import pytest
from instance import Instance, make_clip

MIB = 1024 * 1024
LIMIT_BYTES = 4096 * MIB
SLACK_BYTES = 24 * MIB  # what an allocator may keep more or less of, from run to run
SAMPLE_SECONDS = 0.05


class MemoryGroup:
    """A memory cgroup of our own, version 1 or 2."""

    def __init__(self, folder: Path, limit_file: str, peak_file: str, usage_file: str) -> None:
        self.folder = folder
        self._limit_file = folder / limit_file
        self._peak_file = folder / peak_file
        self._usage_file = folder / usage_file

    @classmethod
    def create(cls, name: str) -> MemoryGroup:
        """Raises OSError where this user may not."""
        version_1 = Path("/sys/fs/cgroup/memory")
        if version_1.is_dir():
            files = ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes")
            group = cls(version_1 / name, *files)
        else:
            group = cls(Path("/sys/fs/cgroup") / name, "memory.max", "memory.peak", "memory.current")
        group.folder.mkdir()
        group._limit_file.write_text(str(LIMIT_BYTES))
        return group

    def enter(self) -> None:
        """Move the calling process into the group; call between fork and exec."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        return int(self._peak_file.read_text())

    def remove(self) -> None:
        self.folder.rmdir()


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    try:
        group = MemoryGroup.create(f"framebox-test-{os.getpid()}")
    except OSError as error:
        reason = f"no memory cgroup can be made: {error.strerror}"
        if os.environ.get("FRAMEBOX_REQUIRE_CGROUP", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    yield group
    group.remove()


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
        ("forkserver", "decoder"),
        ("resource_tracker", "tracker"),
    ):
        if word in line:
            return kind
    return "other"


def test_ten_times_the_frames_take_no_more_memory(memory_group: MemoryGroup, tmp_path: Path) -> None:
    short = make_clip(tmp_path / "short.mp4", frames=10_000, size="64x48", gop=250)
    long = make_clip(tmp_path / "long.mp4", frames=100_000, size="64x48", gop=250)
    peaks = {}
    instance = Instance(tmp_path / "data", model="none")
    try:
        instance.start(preexec_fn=memory_group.enter)
        for name, video, frames in (("short", short, 10_000), ("long", long, 100_000)):
            with PeakWatch(instance) as watch:
                answer = instance.post(video)
            assert answer.status_code == 200, answer.text
            assert answer.headers["Framebox-Frames"] == str(frames)
            peaks[name] = dict(watch.peaks)
        peak_of_all = memory_group.peak_bytes()
        instance.stop()
    finally:
        instance.kill()
    for name, found in peaks.items():
        print(name, {kind: f"{size / MIB:.0f} MiB" for kind, size in sorted(found.items())})  # noqa: T201
    print(f"whole instance, page cache included: {peak_of_all / MIB:.0f} MiB")  # noqa: T201
    assert peak_of_all < LIMIT_BYTES
    for kind in ("engine", "decoder", "web", "nginx"):
        assert peaks["long"][kind] < peaks["short"][kind] + SLACK_BYTES, kind
