"""Frames that carry their number, as two rows of 16 black and white cells: 8 bits and their complement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from app.pipeline.completeness import FrameTally, completeness_report
from app.pipeline.report import Completeness
from app.video.decoder import DecoderPool

WIDTH, HEIGHT, CELL = 256, 144, 16


def write_numbered(path: Path, codec: str, container: str, *, frames: int, rate: int = 25) -> None:
    """Write a video of `frames` pictures that carry their numbers, with B-frames and a keyframe every 15."""
    ground = (
        np.random.default_rng(7).integers(40, 216, (HEIGHT // 4, 150), np.uint8).repeat(4, 0).repeat(4, 1)
    )
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options={"bf": "2", "g": "15", "threads": "1"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 500_000
        for number in range(frames):
            picture = ground[:, 2 * number : 2 * number + WIDTH].copy()
            bits = number >> np.arange(8) & 1
            picture[:32] = picture[112:] = np.concatenate((bits, 1 - bits)).repeat(CELL) * 215 + 20
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        output.mux(stream.encode())


def drawn_number(pixels: npt.NDArray[np.uint8]) -> int | None:
    """The number in a picture, (144, 256, 3); None where it cannot be read, or the rows differ."""
    if pixels.shape[:2] != (HEIGHT, WIDTH):
        return None
    grey = pixels.astype(np.float32).mean(axis=2)
    top, bottom = _read(grey[:32]), _read(grey[112:])
    return top if top == bottom else None


def _read(row: npt.NDArray[np.float32]) -> int | None:
    cells = row[8:24].reshape(CELL, 16, CELL)[:, :, 4:12].mean(axis=(0, 2))
    bits = cells > 128
    if (np.abs(cells - 128) < 40).any() or (bits[:8] == bits[8:]).any():
        return None
    return int((bits[:8] << np.arange(8)).sum())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job would say of a video."""

    numbers: dict[int, int | None]  # by frame id
    completeness: Completeness

    @property
    def wrong(self) -> set[int]:
        """Ids under which another frame's number is seen."""
        return {frame_id for frame_id, number in self.numbers.items() if number not in (None, frame_id)}

    def ids_in(self, member: str) -> set[int]:
        """The ids of a list of ranges: undecodable, corrupt, doubtful."""
        ranges = getattr(self.completeness, member)
        return {n for gap in ranges for n in range(gap.first, gap.last + 1)}


def answer(pool: DecoderPool, video: Path, *, segment_frames: int = 100) -> Answer:
    with pool.index(video, segment_frames=segment_frames, cancelled=lambda: False) as index:
        segments, facts = list(index), index.facts
        summary = index.summary
    tally = FrameTally()
    numbers: dict[int, int | None] = {}
    for segment in segments:
        with pool.decode(
            video,
            segment,
            frame_size=(facts.width, facts.height),
            batch_size=8,
            cancelled=lambda: False,
        ) as session:
            for batch in session:
                numbers |= {
                    int(frame_id): drawn_number(pixels)
                    for frame_id, pixels in zip(batch.frame_ids, batch.frames, strict=True)
                }
                batch.release()
        tally.add(session.outcome)
    return Answer(numbers, completeness_report(tally, summary))
