"""Where videos are indexed and segments run: the Runner protocol, and one that does it in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.index_summary import IndexSummary
from app.video.protocol.facts import VideoFacts
from app.video.sampling import Sampling
from app.video.segments import Segment

Cancelled = Callable[[], bool]


class WorkCancelled(Exception):
    """The caller's `cancelled` said so."""


class ModelChanged(Exception):
    """A model is no longer what it was when the job began, such as another file: it has to begin anew."""


@dataclass(frozen=True, slots=True)
class IndexTask:
    """A video that is to be indexed; picklable."""

    job_id: str
    video: Path
    segment_frames: int
    sampling: Sampling


class IndexReader(Protocol):
    """Who is told of a video while it is indexed. Called by a thread of the runner's, in order."""

    def found_video(self, facts: VideoFacts) -> None:
        """Take what the container tells; called once, first."""
        ...

    def found_segments(self, segments: Sequence[Segment]) -> None:
        """Take further segments, in order."""
        ...


class Runner(Protocol):
    """Indexes videos and runs segments, of many jobs at a time."""

    @property
    def slots(self) -> int:
        """How many segments run at a time."""
        ...

    @property
    def decoder_identity(self) -> str:
        """All of the decoders that may decide a picture or how frames are batched."""
        ...

    def index(self, task: IndexTask, reader: IndexReader, cancelled: Cancelled) -> Future[IndexSummary]:
        """Index a video. The future ends with the summary once `reader` has been told everything, or with
        what is wrong with the video, or WorkCancelled.
        """
        ...

    def submit(
        self, task: SegmentTask, cancelled: Cancelled, *, is_urgent: bool = False
    ) -> Future[SegmentOutcome]:
        """Queue `task`; the future ends with its outcome, or with what went wrong, such as ModelChanged.

        Tasks of urgent jobs come first, but those of other jobs are never starved.
        A task that has not begun can be taken back by `Future.cancel`.
        """
        ...

    def forget(self, video: Path) -> None:
        """Let go of a video: nobody will ask for more of it soon."""
        ...
