"""A mutation fuzzer for the decoder: damaged copies of small videos in many containers, and their ends.

    python benchmarks/decode_fuzz.py [--mutations 2000] [--seed 1] [--compare]

Every mutation must end in a result or in a refusal, within its time and memory, with every frame either
decoded or accounted for. `--compare` counts against the ffmpeg command too; where that decodes more, which
newer versions of FFmpeg do not, against this version's library, packet by packet.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration" / "video"))

from clips import ClipFolder
from reading import read_video

from app.errors import FrameboxError
from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits

MIB = 1024 * 1024
SOURCES = [
    "h264.mp4",
    "h264_fragments.mp4",
    "h264_open_gop.mkv",
    "hevc_open_gop.ts",
    "mpeg2.mpg",
    "vp9.webm",
    "h264.flv",
    "mpeg4.avi",
    "prores.mov",
    "wmv2.asf",
    "theora.ogg",
    "h264.h264",
]
SLOW_SECONDS = 20.0


def flip_bytes(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 40)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def zero_a_run(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start : start + chance.randint(1, 4000)] = bytes(len(data[start : start + chance.randint(1, 4000)]))


def cut_out(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randint(1, 3000)]


def cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def wild_numbers(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(max(1, len(data) - 8))
        value = chance.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", bytes(4), b"\0\0\0\1"])
        data[start : start + 4] = value


def wild_header(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 10)):
        data[chance.randrange(min(len(data), 2000))] = chance.randrange(256)


def move_a_run(data: bytearray, chance: random.Random) -> None:
    start, length = chance.randrange(len(data)), chance.randint(1, 2000)
    run = data[start : start + length]
    target = chance.randrange(len(data))
    data[target:target] = run


MUTATORS: list[Callable[[bytearray, random.Random], None]] = [
    flip_bytes,
    zero_a_run,
    cut_out,
    cut_off,
    wild_numbers,
    wild_header,
    move_a_run,
]


@dataclass(slots=True)
class Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    fewer_than_command: int = 0
    fewer_than_library: int = 0
    unaccounted: int = 0


def count_by_ffmpeg(video: Path) -> int:
    command = [
        "ffmpeg",
        "-v",
        "quiet",
        "-threads",
        "1",
        "-i",
        str(video),
        "-map",
        "0:v:0",
        "-f",
        "framecrc",
        "-",
    ]
    try:
        output = subprocess.run(command, check=False, capture_output=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith(b"0,") for line in output.splitlines())


COUNT = """
import av, sys
count = 0
container = av.open(sys.argv[1], metadata_errors="replace")
stream = container.streams.video[0]
stream.codec_context.thread_count = 1
for packet in container.demux(stream):
    try:
        count += len(packet.decode())
    except av.FFmpegError:
        pass
    print(count, flush=True)
"""


def count_by_library(video: Path) -> int:
    output = subprocess.run(
        [sys.executable, "-c", COUNT, str(video)], check=False, capture_output=True, timeout=60
    ).stdout.split()
    return int(output[-1]) if output else 0


def run_one(pool: DecoderPool, video: Path, tally: Tally, *, compare: bool) -> str:
    started = time.monotonic()
    decoded = 0
    try:
        result = read_video(pool, video, segment_frames=20, batch_size=8)
    except FrameboxError as error:
        outcome = error.code
    else:
        decoded = len(result.frames)
        ids = {frame.frame_id for frame in result.frames}
        missing = result.undecodable_count + result.summary.lost.frames
        accounted = len(ids) + missing == result.summary.frames_indexed
        tally.unaccounted += not accounted or len(ids) != decoded
        crashed = any("crashed" in gap.reason for gap in result.undecodable)
        is_whole = not missing and not result.summary.truncated and result.summary.is_damage_harmless
        outcome = "a decoder died" if crashed else "whole" if is_whole else "damaged"
    tally.outcomes[outcome] += 1
    tally.slowest_seconds = max(tally.slowest_seconds, time.monotonic() - started)
    return _compared(video, decoded, tally) if compare else ""


def _compared(video: Path, decoded: int, tally: Tally) -> str:
    command = count_by_ffmpeg(video)
    if decoded >= command - 1:
        return ""
    tally.fewer_than_command += 1
    library = count_by_library(video)
    if decoded >= library - 1:
        return ""
    tally.fewer_than_library += 1
    return f"{decoded} frames against {library} of the library, {command} of the command"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the mutations that look bad")
    options = parser.parse_args()
    tallies: dict[str, Tally] = defaultdict(Tally)
    with (
        tempfile.TemporaryDirectory() as folder,
        DecoderPool(
            limits=VideoLimits(), memory_bytes=256 * MIB, ring_bytes=4 * MIB, stall_seconds=SLOW_SECONDS
        ) as pool,
    ):
        clips = ClipFolder(Path(folder))
        for number in range(options.mutations):
            source = SOURCES[number % len(SOURCES)]
            chance = random.Random(f"{options.seed}-{number}")
            data = bytearray(clips.get(source).read_bytes())
            mutate = chance.choice(MUTATORS)
            mutate(data, chance)
            video = Path(folder) / f"mutation-{number}"
            video.write_bytes(data)
            remark = run_one(pool, video, tallies[source], compare=options.compare)
            if remark:
                print(f"{source} {number} {mutate.__name__}: {remark}", flush=True)
                if options.keep:
                    (options.keep / f"{number}-{source}").write_bytes(data)
            video.unlink()
    for source, tally in tallies.items():
        counts = ", ".join(f"{name} {count}" for name, count in tally.outcomes.most_common())
        print(
            f"{source:20} slowest {tally.slowest_seconds:.1f} s, unaccounted {tally.unaccounted}, "
            f"fewer than ffmpeg {tally.fewer_than_command}, its library {tally.fewer_than_library}: {counts}"
        )


if __name__ == "__main__":
    main()
