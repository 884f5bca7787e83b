"""The 100 GB proof: a whole instance within 4 GiB of memory takes a valid video of 100 GB.

    make proof-100gb                                   as root; a quarter of an hour, some 10 GB of disk
    python -m benchmarks large_upload [--gigabytes 100] [--chunked] [--folder /var/tmp]

The video is an ordinary MP4 of people who walk, its chunks moved apart, with holes between them. curl posts
it through nginx. The data folder lies on btrfs with zstd, in a sparse image mounted as a loop device, where
what the holes have become, zeros, takes a thirtieth. nginx, gunicorn and the engine share one memory
cgroup. Prints what each stage took, the memory, and whether the answer equals the small video's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import requests

from benchmarks.machine import describe_machine

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "e2e")]

from instance import Instance, repeat_clip  # noqa: E402
from memory_group import MIB, MemoryGroup, PeakWatch  # noqa: E402
from sparse_video import stretch_video  # noqa: E402

LIMIT_BYTES = 4096 * MIB
ROOM_BYTES = 8_000_000_000  # of the disk, beyond the video
MOST_IMAGE_BYTES = 20_000_000_000  # really taken by the image: beyond it something is not compressed
OPTIONS = {"model": "hog-people", "max_side": 320}
SEGMENT_FRAMES = 24  # a report tells of the index when a segment ends
LOOK_SECONDS = 0.5


@dataclass
class Progress:
    """When a job was first seen in each state, seconds since the upload began."""

    instance: Instance
    image: Path
    upload: subprocess.Popen[bytes]
    group: MemoryGroup
    began_at: float = field(default_factory=time.time)
    indexed_seconds: float | None = None
    held_bytes: int = 0  # at most
    probe_seconds: float = 0.0  # the slowest answer of /readyz
    done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="progress")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self._thread.join(60)

    def _watch(self) -> None:
        while not self.done.wait(LOOK_SECONDS):
            self.held_bytes = max(self.held_bytes, self.group.held_bytes())
            asked = time.perf_counter()
            requests.get(f"{self.instance.url}/readyz", timeout=60)
            self.probe_seconds = max(self.probe_seconds, time.perf_counter() - asked)
            self._note_index()
            if self.image.stat().st_blocks * 512 > MOST_IMAGE_BYTES:
                print(f"stopped: the image takes more than {MOST_IMAGE_BYTES} bytes; is it not compressed?")
                self.upload.kill()
                return

    def _note_index(self) -> None:
        jobs = requests.get(f"{self.instance.url}/v1/jobs?limit=1", timeout=60).json()["jobs"]
        newest = jobs[0] if jobs else None
        if self.indexed_seconds is not None or not newest or _seconds(newest["created_at"]) < self.began_at:
            return
        if newest["progress"]["frames_total"] is not None:
            self.indexed_seconds = time.time() - self.began_at


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


@contextmanager
def compressed_disk(folder: Path, size_bytes: int) -> Iterator[tuple[Path, Path]]:
    """Yield the image of a btrfs file system and where it is mounted; both are gone afterwards."""
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    try:
        _run("mkfs.btrfs", "--quiet", str(image))
        _run("mount", "-o", "loop,compress=zstd:1", str(image), str(mounted))
        try:
            yield image, mounted
        finally:
            _run("umount", str(mounted))
    finally:
        image.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _require(*commands: tuple[str, str]) -> None:
    """End here if a command is missing; `commands` are pairs of a command and its Debian package."""
    missing = [package for command, package in commands if shutil.which(command) is None]
    if os.geteuid() != 0:
        sys.exit("This mounts a file system and makes a cgroup: run it as root.")
    if missing:
        sys.exit(f"Missing: apt-get install {' '.join(missing)}")


def _curl(url: str, video: Path, answer: Path, *, chunked: bool) -> subprocess.Popen[bytes]:
    options = "&".join(f"{name}={value}" for name, value in OPTIONS.items())
    headers = ["-H", "Content-Type: video/mp4"] + (["-H", "Transfer-Encoding: chunked"] if chunked else [])
    command = ["curl", "-sS", "-X", "POST", "-T", str(video), "-o", str(answer), *headers]
    written = ["-w", "curl: status %{http_code}, sent %{size_upload} bytes, received %{size_download}\\n"]
    return subprocess.Popen([*command, *written, f"{url}/v1/detections?{options}"])


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _print_stages(report: dict[str, Any], progress: Progress, ended_at: float, size_bytes: int) -> None:
    began, created = progress.began_at, _seconds(report["created_at"])
    started, finished = _seconds(report["started_at"]), _seconds(report["finished_at"])
    indexed = progress.indexed_seconds or 0.0
    rows = [
        ("upload, until the job is durable", created - began),
        ("queued", started - created),
        ("index whole, after the start (looked every 0.5 s)", max(0.0, began + indexed - started)),
        ("index, decoding, detection, document", finished - started),
        ("answer, after the end", ended_at - finished),
        ("everything", ended_at - began),
    ]
    for name, seconds in rows:
        print(f"{seconds:9.1f} s  {name}")
    print(f"{size_bytes / (created - began) / 1e6:9.0f} MB/s upload")


def prove(folder: Path, size_bytes: int, *, chunked: bool) -> bool:
    """Run it in `folder`. True if every frame of the answer is the small video's."""
    small = repeat_clip(CHECKOUT / "docs" / "walkers.mp4", folder / "small.mp4", times=16)
    large, answer = folder / "large.mp4", folder / "answer.json"
    stretch_video(small, large, size_bytes=size_bytes)
    print(f"video: {large.stat().st_size} bytes, of which {large.stat().st_blocks * 512} on disk")
    group = MemoryGroup.create(f"framebox-proof-{os.getpid()}", limit_bytes=LIMIT_BYTES)
    try:
        with compressed_disk(folder, size_bytes + ROOM_BYTES) as (image, disk):
            instance = Instance(disk / "data", segment_frames=SEGMENT_FRAMES)
            try:
                instance.start(preexec_fn=group.enter)
                expected = instance.post(small, **OPTIONS).content
                _post_large(instance, group, image, large, answer, chunked=chunked)
                instance.stop()
            finally:
                instance.kill()
    finally:
        group.remove()
    is_equal = answer.read_bytes() == expected
    print(f"answer: {answer.stat().st_size} bytes, equal to the small video's: {is_equal}")
    return is_equal


def _post_large(
    instance: Instance, group: MemoryGroup, image: Path, video: Path, answer: Path, *, chunked: bool
) -> None:
    size_bytes = video.stat().st_size
    upload = _curl(instance.url, video, answer, chunked=chunked)
    with PeakWatch(instance) as watch, Progress(instance, image, upload, group) as progress:
        upload.wait()
        ended_at = time.time()
    report = requests.get(f"{instance.url}/v1/jobs?limit=1", timeout=60).json()["jobs"][0]
    _print_stages(report, progress, ended_at, size_bytes)
    peaks = ", ".join(f"{kind} {size / MIB:.0f}" for kind, size in sorted(watch.peaks.items()))
    print(f"largest resident process of a kind, MiB: {peaks}")
    print(
        f"cgroup, MiB: at most {progress.held_bytes / MIB:.0f} held by processes (sampled), "
        f"{group.peak_bytes() / MIB:.0f} with page cache, limit {LIMIT_BYTES / MIB:.0f}; "
        f"killed for memory: {group.out_of_memory_kills()}"
    )
    print(f"slowest /readyz meanwhile: {progress.probe_seconds:.2f} s")
    print(f"image on disk: {image.stat().st_blocks * 512 / 1e9:.2f} GB")
    print(f"frames: {report['completeness']}")
    print(f"SHA-256 of the video as received: {report['source']['sha256']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=100)
    parser.add_argument("--chunked", action="store_true", help="post without a Content-Length")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where the disk's image lies")  # noqa: S108
    arguments = parser.parse_args()
    _require(("mkfs.btrfs", "btrfs-progs"), ("curl", "curl"), ("ffmpeg", "ffmpeg"), ("nginx", "nginx"))
    print(describe_machine())
    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="framebox-proof-"))
    try:
        is_equal = prove(folder, int(arguments.gigabytes * 1e9), chunked=arguments.chunked)
    finally:
        shutil.rmtree(folder)
    sys.exit(0 if is_equal else 1)
