"""The index pass: its time against plain demuxing, and what the check of the container's chain adds to it.

    python -m benchmarks index_speed [--megabytes 1000] [--kinds mp4 mkv ts …] [--rounds 3]

Processor seconds of this process alone, in turns within one run; the files are in the page cache. Of each 250
packets the least of the rounds counts: other work on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import av

from app.video.child.channel import Channel
from app.video.child.container import OpenOptions, PacketReader
from app.video.child.ffmpeg_log import LogTail
from app.video.child.indexing import Indexer
from app.video.child.watch import PacketWatch
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Command, Message
from benchmarks.machine import describe_machine

SECONDS = 20  # of the clip that is repeated
PACKETS = 250  # whose time is taken together
PICTURES = "testsrc2=size=960x540:rate=25,noise=alls=30:allf=t"
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-b:v", "8M", "-g", "50", "-pix_fmt", "yuv420p")
MPEG2 = ("-c:v", "mpeg2video", "-b:v", "8M", "-g", "15", "-bf", "2")
KINDS = {  # extension: video codec
    "mp4": H264,
    "mkv": H264,
    "ts": H264,
    "flv": H264,
    "avi": ("-c:v", "mpeg4", "-b:v", "8M", "-g", "50"),
    "mpg": MPEG2,
    "wmv": ("-c:v", "wmv2", "-b:v", "8M", "-g", "50"),
    "ogv": ("-c:v", "libtheora", "-b:v", "8M", "-g", "50"),
}


class SilentHost(Channel):
    """Stands where the pipe to the host is, and takes the processor's time every 250 packets."""

    def __init__(self) -> None:
        self.times = [time.process_time()]

    def send(self, kind: Message, payload: bytes = b"") -> None: ...
    def show_read(self, packets: int) -> None:
        if not packets % PACKETS:
            self.times.append(time.process_time())

    def show_fed(self, packets: int) -> None: ...

    @contextmanager
    def show_opening(self) -> Iterator[None]:
        yield

    def receive(self) -> tuple[Command, bytes]:
        raise EOFError


def make(folder: Path, kind: str, megabytes: int) -> Path:
    """Return a file of about so many megabytes: a clip with sound, repeated without coding it anew."""
    clip, video = folder / f"clip.{kind}", folder / f"video.{kind}"
    ffmpeg = ["ffmpeg", "-v", "error", "-y"]
    sources = ["-f", "lavfi", "-i", PICTURES, "-f", "lavfi", "-i", "sine=sample_rate=44100"]
    subprocess.run(
        [*ffmpeg, *sources, "-t", str(SECONDS), *KINDS[kind], str(clip)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    loops = megabytes * 1_000_000 // clip.stat().st_size
    copy = ["-stream_loop", str(loops), "-i", str(clip), "-map", "0", "-c", "copy"]
    subprocess.run([*ffmpeg, *copy, str(video)], check=True, stderr=subprocess.DEVNULL)
    return video


def demux(video: Path, host: SilentHost) -> None:
    with av.open(str(video)) as container:
        for number, _ in enumerate(container.demux(container.streams.video[0]), 1):
            host.show_read(number)


def index(video: Path, host: SilentHost, *, walks: bool) -> None:
    limits = VideoLimits()
    descriptor = os.open(video, os.O_RDONLY)
    try:
        reader = PacketReader(OpenOptions(descriptor, 1, limits), host)
        watch = PacketWatch(reader, host, LogTail())
        if not walks:
            watch.leave_chain_unchecked()
        Indexer(reader, watch, host, limits).run()
        reader.close()
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(describe_machine())
    ways = {
        "plain": demux,
        "unchecked": lambda video, host: index(video, host, walks=False),
        "checked": lambda video, host: index(video, host, walks=True),
    }
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            video = make(Path(folder), kind, options.megabytes)
            size = video.stat().st_size / 1e6
            spent: dict[str, list[list[float]]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, run in ways.items():
                    host = SilentHost()
                    run(video, host)
                    times = [*host.times, time.process_time()]
                    spent[way].append([after - before for before, after in pairwise(times)])
        plain, unchecked, checked = (sum(map(min, zip(*spent[way], strict=True))) for way in ways)
        print(
            f"{kind}: {size:.0f} MB, plain {plain:.2f} s, index {checked:.2f} s ({size / checked:.0f} MB/s), "
            f"of plain {checked / plain:.2f}; the chain's check {(checked / unchecked - 1):+.0%} of the index"
        )


if __name__ == "__main__":
    main()
