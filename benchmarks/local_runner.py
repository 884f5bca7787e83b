"""A Runner in this process, for tests and measurements without an engine or a host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from app.detection.device import DeviceThread
from app.pipeline.run_segment import index_video, run_segment
from app.pipeline.runner import IndexItem, IndexTask
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.decoder import DecoderPool
from app.video.results import Cancelled, IndexSummary


class LocalRunner:
    """Runs segments in threads, in the order of submission. Fulfils Runner."""

    def __init__(
        self, *, slots: int, decoders: DecoderPool, device_for: Callable[[str], DeviceThread]
    ) -> None:
        """`device_for` returns the device that holds the named model."""
        self.slots = slots
        self._decoders = decoders
        self._device_for = device_for
        self._segments = ThreadPoolExecutor(slots, "segment")
        self._indexes = ThreadPoolExecutor(1, "index")
        self.phases: dict[str, float] = {}  # seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._segments.shutdown(cancel_futures=True)
        self._indexes.shutdown(cancel_futures=True)

    @property
    def decoder_identity(self) -> str:
        return self._decoders.identity

    def index(
        self, task: IndexTask, found: Callable[[IndexItem], None], cancelled: Cancelled
    ) -> Future[IndexSummary]:
        return self._indexes.submit(index_video, self._decoders, task, found, cancelled)

    def submit(
        self,
        task: SegmentTask,
        cancelled: Cancelled,
        *,
        is_urgent: bool = False,  # noqa: ARG002 - all are
    ) -> Future[SegmentOutcome]:
        def run() -> SegmentOutcome:
            return run_segment(
                task,
                decoders=self._decoders,
                device=self._device_for(task.model),
                cancelled=cancelled,
                seconds=self.phases,
                advance=lambda _frames: None,
            )

        return self._segments.submit(run)

    def forget(self, video: Path) -> None:
        self._decoders.forget(video)
