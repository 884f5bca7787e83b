"""Frames a second from decode sessions against FFmpeg's own command, in turns within one run.

    python benchmarks/decode_speed.py VIDEO … [--decoders 2] [--threads 1] [--width 640] [--rounds 3]

The consumer drops the frames at once, as a detector of no cost would.
"""

from __future__ import annotations

import argparse
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.video.decoder import DecoderPool
from app.video.protocol.facts import VideoFacts
from app.video.protocol.limits import VideoLimits
from app.video.segments import Segment

MIB = 1024 * 1024


def never() -> bool:
    return False


def frame_size(facts: VideoFacts, width: int) -> tuple[int, int]:
    scale = min(1.0, width / max(facts.width, facts.height))
    return max(1, round(facts.width * scale)), max(1, round(facts.height * scale))


def run_ours(pool: DecoderPool, video: Path, options: argparse.Namespace) -> tuple[float, int]:
    """Return (seconds, frames) of indexing and decoding `video` with several decoders."""
    started = time.perf_counter()
    segments: queue.Queue[Segment | None] = queue.Queue(maxsize=8)
    counts: list[int] = []
    with pool.index(video, segment_frames=options.segment_frames, cancelled=never) as index:
        size = frame_size(index.facts, options.width)

        def consume() -> None:
            while (segment := segments.get()) is not None:
                with pool.decode(video, segment, frame_size=size, batch_size=8, cancelled=never) as session:
                    for batch in session:
                        counts.append(len(batch))
                        batch.release()

        consumers = [threading.Thread(target=consume, name=f"consumer-{n}") for n in range(options.decoders)]
        for consumer in consumers:
            consumer.start()
        for segment in index:
            segments.put(segment)
        for _ in consumers:
            segments.put(None)
        for consumer in consumers:
            consumer.join()
    return time.perf_counter() - started, sum(counts)


def run_ffmpeg(video: Path) -> float:
    started = time.perf_counter()
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(video), "-map", "0:v:0", "-f", "null", "-"], check=True
    )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--segment-frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pool = DecoderPool(
        limits=VideoLimits(), threads=options.threads, memory_bytes=768 * MIB, ring_bytes=96 * MIB
    )
    with pool:
        for video in options.videos:
            ours, theirs, frames = [], [], 0
            for _ in range(options.rounds):
                theirs.append(run_ffmpeg(video))
                seconds, frames = run_ours(pool, video, options)
                ours.append(seconds)
            ratio = median(theirs) / median(ours)
            print(
                f"{video.name}: {frames} frames, ours {frames / median(ours):.0f}/s, "
                f"ffmpeg {frames / median(theirs):.0f}/s, ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
