"""Where videos are indexed and segments run: the Runner protocol."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.protocol.facts import VideoFacts
from app.video.results import Cancelled, IndexSummary
from app.video.sampling import Sampling
from app.video.segments import Segment


class ModelChanged(Exception):
    """The model is another than when the job began, such as another file: the job has to start again."""


@dataclass(frozen=True, slots=True)
class IndexTask:
    """A video to index; picklable."""

    job_id: str
    video: Path
    segment_frames: int
    sampling: Sampling


IndexItem = VideoFacts | Segment  # what indexing finds: the facts first and once, then segments in order


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

    def index(
        self, task: IndexTask, found: Callable[[IndexItem], None], cancelled: Cancelled
    ) -> Future[IndexSummary]:
        """Index a video. A thread of the runner calls `found` with each item.

        The future ends with the summary after the last item, or with the video's fault, or WorkCancelled.
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
