"""Where videos are indexed and segments run: the Runner protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.protocol.facts import VideoFacts
from app.video.results import IndexSummary
from app.video.sampling import Sampling
from app.video.segments import Segment

Cancelled = Callable[[], bool]


class WorkCancelled(Exception):
    """The caller's `cancelled` returned true."""


class ModelChanged(Exception):
    """The model is another than when the job began, such as another file: the job has to start again."""


@dataclass(frozen=True, slots=True)
class IndexTask:
    """A video to index; picklable."""

    job_id: str
    video: Path
    segment_frames: int
    sampling: Sampling


class IndexReader(Protocol):
    """Receives what is found while a video is indexed. A thread of the runner calls it, in order."""

    def found_video(self, facts: VideoFacts) -> None:
        """Take the container's facts; called once, first."""
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
        """Everything about the decoders that may change a picture or the batches."""
        ...

    def index(self, task: IndexTask, reader: IndexReader, cancelled: Cancelled) -> Future[IndexSummary]:
        """Index a video. The future ends with the summary once `reader` has received everything, or with the
        video's fault, or WorkCancelled.
        """
        ...

    def submit(
        self, task: SegmentTask, cancelled: Cancelled, *, is_urgent: bool = False
    ) -> Future[SegmentOutcome]:
        """Queue `task`; the future ends with its outcome, or with an error such as ModelChanged.

        Tasks of urgent jobs come first, but those of other jobs never starve. `Future.cancel` takes back a
        task that has not begun.
        """
        ...

    def forget(self, video: Path) -> None:
        """Release a video: no more of it is needed soon."""
        ...
