"""What the pipeline needs from a decoder: a video's index, and the frames of its segments.

`app.video.decoder.DecoderPool` is the FrameSource that decodes on the CPU, in sandboxed processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.video.index_summary import IndexSummary
from app.video.protocol.facts import VideoFacts
from app.video.sampling import Sampling
from app.video.sandbox_status import SandboxStatus
from app.video.segments import FrameRange, Segment

Cancelled = Callable[[], bool]


class DecodingCancelled(Exception):
    """The caller's `cancelled` returned True."""


@dataclass(frozen=True, slots=True)
class DecodeOutcome:
    """What happened to the wanted frames of a segment."""

    frames_wanted: int
    frames_decoded: int
    undecodable: tuple[FrameRange, ...]  # ascending
    corrupt: tuple[FrameRange, ...]  # decoded, but from damaged data according to the decoder
    doubtful: tuple[FrameRange, ...]  # decoded, but after a missing or corrupt frame and before a keyframe

    @property
    def corrupt_count(self) -> int:
        return sum(gap.frame_count for gap in self.corrupt)


class FrameBatch:
    """Decoded frames, in order and of one source size, in memory that the consumer holds until `release`."""

    def __init__(
        self,
        frame_ids: npt.NDArray[np.int64],
        pts: npt.NDArray[np.int64],
        frames: npt.NDArray[np.uint8],
        source_size: tuple[int, int],
        on_release: Callable[[], None],
    ) -> None:
        self.frame_ids = frame_ids  # (n,) ascending
        self.pts = pts  # (n,) ticks of VideoFacts.time_base
        self.frames = frames  # (n, height, width, 3) uint8 RGB, a view into the ring
        self.source_size = source_size  # (width, height) as displayed, to map boxes back to
        self._on_release: Callable[[], None] | None = on_release

    def __len__(self) -> int:
        return len(self.frame_ids)

    def release(self) -> None:
        """Give the memory back to the decoder. Do not read `frames` afterwards. May be called twice."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class Index(Iterable[Segment], AbstractContextManager["Index"], Protocol):
    """One pass over a video: an iterator over its segments, in order; closed by `with`."""

    @property
    def facts(self) -> VideoFacts:
        """What the container declares about the video; known from the start."""
        ...

    @property
    def summary(self) -> IndexSummary:
        """What the whole pass has found. ValueError before the end of the iteration."""
        ...


class Frames(Iterable[FrameBatch], AbstractContextManager["Frames"], Protocol):
    """One segment being decoded: an iterator over the batches of its wanted frames; closed by `with`.

    Batches may be released in any order and from any thread.
    """

    @property
    def outcome(self) -> DecodeOutcome:
        """What happened to the segment's frames. ValueError before the end of the iteration."""
        ...


class FrameSource(Protocol):
    """Decodes videos. All methods may be called from several threads."""

    @property
    def identity(self) -> str:
        """Names all that may change a picture or how frames are batched."""
        ...

    @property
    def sandbox(self) -> SandboxStatus | None:
        """Which parts of the sandbox are in force in decoder processes. None before the first start."""
        ...

    def index(self, video: Path, *, segment_frames: int, sampling: Sampling, cancelled: Cancelled) -> Index:
        """Open `video`, and cut it into segments of at least `segment_frames` frames (the last may be less).

        Raises UnsupportedVideo, UnsupportedCodec, NoVideoStream, EncryptedVideo, NothingDecodable,
        VideoOverLimit, UnusableVideo, DecodingCancelled; also during the iteration.
        """
        ...

    def decode(
        self,
        video: Path,
        segment: Segment,
        *,
        frame_size: tuple[int, int],
        batch_size: int,
        cancelled: Cancelled,
    ) -> Frames:
        """Decode the wanted frames of `segment`, upright, at (width, height) = `frame_size`.

        Batches hold `batch_size` frames, or as many as fit. Raises VideoOverLimit if not even the smallest
        batches fit; during the iteration, DecodingCancelled and InternalError.
        """
        ...

    def forget(self, video: Path) -> None:
        """Release all resources of `video`: no more of it will be requested."""
        ...
