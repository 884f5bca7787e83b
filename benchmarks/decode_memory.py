"""Peak memory of a decoder child, by picture size and depth, and the address space that it needs.

    python benchmarks/decode_memory.py [--threads 1] [--sizes 1080p,4k,8k]

Peaks are the child's VmHWM without the ring's pages, and VmPeak beyond what it starts with, which is what
its limit counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits

MIB = 1024 * 1024
SIZES = {"1080p": (1920, 1080), "4k": (3840, 2160), "8k": (7680, 4320)}
CODECS = {
    ("h264", 8): ["-c:v", "libx264", "-preset", "ultrafast", "-refs", "4", "-pix_fmt", "yuv420p"],
    ("h264", 10): ["-c:v", "libx264", "-preset", "ultrafast", "-refs", "4", "-pix_fmt", "yuv420p10le"],
    ("hevc", 8): [
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-x265-params",
        "log-level=none:ref=4:bframes=4",
    ],
    ("hevc", 10): [
        *("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:ref=4:bframes=4"),
        *("-pix_fmt", "yuv420p10le"),
    ],
}


def never() -> bool:
    return False


def make(folder: Path, size: tuple[int, int], codec: tuple[str, int]) -> Path:
    video = folder / f"{codec[0]}-{codec[1]}-{size[0]}.mp4"
    source = f"testsrc2=size={size[0]}x{size[1]}:rate=25"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", "24", *CODECS[codec], "-y"]
    subprocess.run([*command, str(video)], check=True)
    return video


def status_of(pid: int) -> dict[str, int]:
    """Bytes by name of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}


def measure(pool: DecoderPool, video: Path) -> tuple[int, int, int]:
    """Return (frames, peak resident bytes, peak address space beyond the start)."""
    with pool.index(video, segment_frames=1000, cancelled=never) as index:
        (segment,) = index
    frames, resident, space = 0, 0, 0
    with pool.decode(video, segment, frame_size=(640, 360), batch_size=4, cancelled=never) as session:
        for batch in session:
            frames += len(batch)
            assert session._child is not None  # noqa: SLF001 - nobody else needs it
            status = status_of(session._child.pid or 0)  # noqa: SLF001
            resident = max(resident, status["VmHWM"] - status["RssShmem"])
            space = max(space, status["VmPeak"])
            batch.release()
    return frames, resident, space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default="1080p,4k,8k")
    parser.add_argument("--memory", type=int, default=4096, help="MiB of address space a child")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        DecoderPool(
            limits=VideoLimits(),
            threads=options.threads,
            memory_bytes=options.memory * MIB,
            ring_bytes=16 * MIB,
            idle_children=0,
        ) as pool,
    ):
        base = _base_space(pool)
        for name in options.sizes.split(","):
            for codec in CODECS:
                video = make(Path(folder), SIZES[name], codec)
                frames, resident, space = measure(pool, video)
                print(
                    f"{name:5} {codec[0]} {codec[1]:2} bit: {frames} of 24 frames, "
                    f"resident {resident // MIB} MiB, "
                    f"address space +{(space - base) // MIB} MiB",
                    flush=True,
                )
                video.unlink()


def _base_space(pool: DecoderPool) -> int:
    """The address space of a child that has done nothing yet."""
    child = pool.acquire(Path(__file__), threads=1, cancelled=never)
    try:
        assert child.pid is not None
        return status_of(child.pid)["VmSize"]
    finally:
        child.close()


if __name__ == "__main__":
    main()
