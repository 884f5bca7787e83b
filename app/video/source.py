"""What the pipeline needs of a decoder: a video's index, and the frames of its segments.

`app.video.decoder.DecoderPool` is the FrameSource that decodes on the CPU, in sandboxed processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from app.video.index_summary import IndexSummary
from app.video.protocol.facts import VideoFacts
from app.video.sampling import Sampling
from app.video.sandbox_status import SandboxStatus
from app.video.segments import FrameRange, Segment

Cancelled = Callable[[], bool]


class DecodingCancelled(Exception):
    """The caller's `cancelled` said so."""


@dataclass(frozen=True, slots=True)
class DecodeOutcome:
    """What became of the wanted frames of a segment."""

    frames_wanted: int
    frames_decoded: int
    undecodable: tuple[FrameRange, ...]  # ascending
    corrupt: tuple[FrameRange, ...]  # decoded, but marked by the decoder as built on damaged data
    doubtful: tuple[FrameRange, ...]  # decoded, but after a missing or corrupt one and before a keyframe

    @property
    def corrupt_count(self) -> int:
        return sum(gap.frame_count for gap in self.corrupt)


class FrameBatch:
    """Consecutive decoded frames, of one source size, in memory that is the consumer's until `release`."""

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
        """Give the memory back to the decoder; `frames` must not be read any more. Twice is fine."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class Index(Protocol):
    """One pass over a video: an iterator over its segments, in order; closed by `with`."""

    @property
    def facts(self) -> VideoFacts:
        """What the container says of the video; known from the start."""
        ...

    @property
    def summary(self) -> IndexSummary:
        """What the whole pass has shown. ValueError before the iteration is through."""
        ...

    def __iter__(self) -> Iterator[Segment]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Frames(Protocol):
    """One segment being decoded: an iterator over the batches of its wanted frames; closed by `with`.

    Batches may be released in any order and from any thread.
    """

    @property
    def outcome(self) -> DecodeOutcome:
        """What became of the segment's frames. ValueError before the iteration is through."""
        ...

    def __iter__(self) -> Iterator[FrameBatch]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FrameSource(Protocol):
    """Decodes videos. All methods may be called from several threads."""

    @property
    def identity(self) -> str:
        """All that may decide a picture or how frames are batched; changes when that may."""
        ...

    @property
    def sandbox(self) -> SandboxStatus | None:
        """What locks down the processes that open videos; None before they were tried."""
        ...

    def index(self, video: Path, *, segment_frames: int, sampling: Sampling, cancelled: Cancelled) -> Index:
        """Open `video`, to be cut into segments of `segment_frames` frames or more (the last may be shorter).

        Raises UnsupportedVideo, UnsupportedCodec, NoVideoStream, EncryptedVideo, NothingDecodable,
        VideoOverLimit, UnusableVideo, DecodingCancelled; also while the index is iterated over.
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

        Batches hold `batch_size` frames, or as many as have room. Raises VideoOverLimit if not even the
        smallest ones have room; while the frames are iterated over, DecodingCancelled and InternalError.
        """
        ...

    def forget(self, video: Path) -> None:
        """Let go of all that is held for `video`: no more of it will be asked for."""
        ...
