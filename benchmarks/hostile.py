"""What files made to hurt come to: outcome, seconds, and the peak memory of the children that read them.

    python -m benchmarks hostile [NAME …]

Children are those of the service: their limits, their lock-down. Peaks are VmHWM, asked for every few
milliseconds while a child lives.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration" / "video"))

from clips import ClipFolder
from hostile_files import HOSTILE
from reading import read_video
from tagged_files import MANY_TAGS

from app.errors import FrameboxError
from app.settings import load_settings
from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits
from benchmarks.machine import describe_machine

MIB = 1024 * 1024
ASK_SECONDS = 0.003


class PeakWatch(threading.Thread):
    """Keeps the largest VmHWM of any descendant of this process; `with` starts and ends it."""

    def __init__(self) -> None:
        super().__init__(name="peak-watch")
        self._is_over = threading.Event()
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        while not self._is_over.wait(ASK_SECONDS):
            for child in psutil.Process(os.getpid()).children(recursive=True):
                self.peak_bytes = max(self.peak_bytes, high_water_mark(child.pid))


def high_water_mark(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def outcome_of(pool: DecoderPool, video: Path) -> str:
    try:
        read = read_video(pool, video, frame_size=(64, 36))
    except FrameboxError as error:
        limit = error.extensions.get("limit")
        return f"{error.code} ({limit})" if limit else error.code
    lost = f", {read.undecodable_count} undecodable" if read.undecodable else ""
    return f"{len(read.frames)} frames{lost}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    files = {**HOSTILE, **MANY_TAGS}
    parser.add_argument("names", nargs="*", default=sorted(files))
    names = parser.parse_args().names
    settings = load_settings()
    print(f"{describe_machine()}\n\n| file | bytes | outcome | seconds | peak MiB |\n|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        DecoderPool(
            limits=VideoLimits(),
            memory_bytes=settings.decoder_memory_bytes,
            ring_bytes=settings.ring_bytes,
            idle_children=0,
        ) as pool,
    ):
        clips = ClipFolder(Path(folder))
        for name in names:
            video = Path(folder) / name
            files[name][0](clips, video)
            started = time.perf_counter()
            with PeakWatch() as watch:
                outcome = outcome_of(pool, video)
            seconds = time.perf_counter() - started
            peak = watch.peak_bytes // MIB
            print(f"| {name} | {video.stat().st_size} | {outcome} | {seconds:.1f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
