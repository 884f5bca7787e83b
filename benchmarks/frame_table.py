"""For every kind of video: the frames that ffmpeg counts, ours in one piece and in segments, and the pixels.

    python -m benchmarks frame_table [NAME …] [--data ../shared/data]

Pixels are compared with the ffmpeg command's own conversion to rgb24, at the video's size: the largest mean
difference over one picture, in levels of 255. The clips are those of the tests; of the damaged files those
that are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration" / "video"))

from clips import RECIPES, ClipFolder
from reading import CHROMA_LEFT, ReadVideo, ffmpeg_pixels, read_video, same_frames
from test_every_frame import CHROMA_IN_THE_MIDDLE

from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits
from benchmarks.decode_fuzz import count_by_ffmpeg
from benchmarks.machine import describe_machine

MIB = 1024 * 1024
SEGMENT_FRAMES = 20
SMALL = (96, 54)


def largest_difference(name: str, video: Path, read: ReadVideo) -> tuple[int, float | None]:
    """Return (frames that ffmpeg decodes, largest mean difference of a picture; None where counts differ)."""
    facts = read.facts
    chroma = "" if name in CHROMA_IN_THE_MIDDLE else CHROMA_LEFT
    expected = ffmpeg_pixels(video, facts.width, facts.height, chroma=chroma)
    if len(expected) != len(read.frames):
        return len(expected), None
    return len(expected), max(
        float(np.abs(frame.pixels - pixels).mean())
        for frame, pixels in zip(read.frames, expected, strict=True)
        if frame.source_size == (facts.width, facts.height)
    )


def row(pool: DecoderPool, name: str, video: Path) -> str:
    serial = read_video(pool, video)
    cut = read_video(pool, video, segment_frames=SEGMENT_FRAMES)
    same = "the same" if same_frames(serial.frames, cut.frames) else differing(serial, cut)
    counted, difference = largest_difference(name, video, serial)
    pixels = "-" if difference is None else "equal" if difference == 0 else f"{difference:.2f}"
    lost = f" ({serial.undecodable_count} undecodable)" if serial.undecodable else ""
    cells = (name, counted, f"{len(serial.frames)}{lost}", len(cut.frames), same, pixels)
    return "| " + " | ".join(map(str, cells)) + " |"


def damaged_row(pool: DecoderPool, video: Path) -> str:
    """Of the larger, damaged files pictures are compared with each other alone, scaled down."""
    serial = read_video(pool, video, frame_size=SMALL)
    cut = read_video(pool, video, segment_frames=100, frame_size=SMALL)
    same = "the same" if same_frames(serial.frames, cut.frames) else differing(serial, cut)
    lost = f" ({serial.undecodable_count} undecodable)" if serial.undecodable else ""
    cells = (
        f"damaged/{video.name}",
        count_by_ffmpeg(video),
        f"{len(serial.frames)}{lost}",
        len(cut.frames),
        same,
        "-",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def differing(serial: ReadVideo, cut: ReadVideo) -> str:
    if [frame.frame_id for frame in serial.frames] != [frame.frame_id for frame in cut.frames]:
        return "other frames"
    count = sum(
        not np.array_equal(one.pixels, other.pixels)
        for one, other in zip(serial.frames, cut.frames, strict=True)
    )
    return f"{count} patched pictures differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("names", nargs="*", help="clips or damaged files; all of them if none is named")
    arguments = parser.parse_args()
    damaged = {f"damaged/{video.name}": video for video in sorted((arguments.data / "damaged").glob("*.*"))}
    print(f"{describe_machine()}; segments of {SEGMENT_FRAMES} frames\n")
    print("| file | ffmpeg | ours, serial | in segments | frames of both | pixels against ffmpeg's |")
    print("|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        DecoderPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=96 * MIB) as pool,
    ):
        clips = ClipFolder(Path(folder))
        for name in arguments.names or [*sorted(RECIPES), *damaged]:
            is_clip = name in RECIPES
            print(
                row(pool, name, clips.get(name)) if is_clip else damaged_row(pool, damaged[name]), flush=True
            )


if __name__ == "__main__":
    main()
