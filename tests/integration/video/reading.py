"""Reading a whole video through the decoder pool, and through the ffmpeg command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.video.decode_session import DecodeSession
from app.video.decoder import DecoderPool
from app.video.process import ChildProcess
from app.video.protocol.facts import VideoFacts
from app.video.results import IndexSummary
from app.video.sampling import Sampling
from app.video.segments import FrameRange, Segment

MIB = 1024 * 1024
WHOLE = 10**6  # segment_frames that make one segment


def never() -> bool:
    return False


def child_of(session: DecodeSession) -> ChildProcess:
    """Return the child that decodes for the session now."""
    assert session._child.process is not None
    return session._child.process


@dataclass(frozen=True, slots=True, eq=False)
class ReadFrame:
    frame_id: int
    pts: int
    pixels: npt.NDArray[np.uint8]
    source_size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class ReadVideo:
    facts: VideoFacts
    segments: list[Segment]
    frames: list[ReadFrame]
    undecodable: list[FrameRange]
    corrupt_count: int
    summary: IndexSummary
    batch_sizes: list[int]

    @property
    def undecodable_count(self) -> int:
        return sum(gap.last - gap.first + 1 for gap in self.undecodable)


def read_video(
    pool: DecoderPool,
    video: Path,
    *,
    segment_frames: int = WHOLE,
    sampling: Sampling | None = None,
    frame_size: tuple[int, int] | None = None,
    batch_size: int = 4,
) -> ReadVideo:
    with pool.index(video, segment_frames=segment_frames, sampling=sampling, cancelled=never) as index:
        segments = list(index)
        result = ReadVideo(index.facts, segments, [], [], 0, index.summary, [])
    corrupt = 0
    for segment in segments:
        corrupt += read_segment(pool, video, segment, result, frame_size=frame_size, batch_size=batch_size)
    return ReadVideo(
        result.facts, segments, result.frames, result.undecodable, corrupt, result.summary, result.batch_sizes
    )


def read_segment(
    pool: DecoderPool,
    video: Path,
    segment: Segment,
    result: ReadVideo,
    *,
    frame_size: tuple[int, int] | None = None,
    batch_size: int = 4,
) -> int:
    """Append the segment's frames to `result`; return how many were marked corrupt."""
    size = frame_size or (result.facts.width, result.facts.height)
    with pool.decode(video, segment, frame_size=size, batch_size=batch_size, cancelled=never) as session:
        for batch in session:
            result.batch_sizes.append(len(batch))
            for frame_id, pts, pixels in zip(batch.frame_ids, batch.pts, batch.frames, strict=True):
                frame = ReadFrame(int(frame_id), int(pts), pixels.copy(), batch.source_size)
                result.frames.append(frame)
            batch.release()
        result.undecodable.extend(session.outcome.undecodable)
        return sum(stretch.frame_count for stretch in session.outcome.corrupt)


def same_frames(first: list[ReadFrame], second: list[ReadFrame]) -> bool:
    return len(first) == len(second) and all(
        (a.frame_id, a.pts, a.source_size) == (b.frame_id, b.pts, b.source_size)
        and np.array_equal(a.pixels, b.pixels)
        for a, b in zip(first, second, strict=True)
    )


CHROMA_LEFT = ":in_h_chr_pos=0"


def ffmpeg_pixels(
    video: Path, width: int, height: int, *, chroma: str = CHROMA_LEFT, scaling: str = "bilinear"
) -> npt.NDArray[np.int16]:
    """(n, height, width, 3) RGB of every frame that the ffmpeg command decodes, in its order.

    The chroma's place is given, for older versions of the command take it to be elsewhere.
    """
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(video), "-map", "0:v:0", "-fps_mode"]
    scale = f"scale={width}:{height}:flags={scaling}{chroma},format=rgb24"
    command += ["passthrough", "-vf", scale, "-f", "rawvideo", "-"]
    output = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    return np.frombuffer(output, dtype=np.uint8).reshape(-1, height, width, 3).astype(np.int16)
