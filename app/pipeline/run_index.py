"""Index one video in a host, and report its segments as they are found."""

from __future__ import annotations

from app.pipeline.runner import Cancelled, IndexReader, IndexTask, WorkCancelled
from app.video.index_summary import IndexSummary
from app.video.source import DecodingCancelled, FrameSource


def index_video(
    decoders: FrameSource, task: IndexTask, reader: IndexReader, cancelled: Cancelled
) -> IndexSummary:
    """Index a video in this thread. Raises the video's fault, or WorkCancelled."""
    try:
        with decoders.index(
            task.video, segment_frames=task.segment_frames, sampling=task.sampling, cancelled=cancelled
        ) as index:
            reader.found_video(index.facts)
            for segment in index:
                reader.found_segments((segment,))
            return index.summary
    except DecodingCancelled as error:
        raise WorkCancelled from error
