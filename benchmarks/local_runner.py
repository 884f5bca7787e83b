"""A Runner in this process, for tests and measurements without an engine or a host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch

from app.detection.detector import Detector
from app.detection.device import DeviceThread
from app.detection.devices import describe_runtime
from app.detection.measuring import MemoryMeter, arrangement_of, measure
from app.detection.model_facts import Verdict
from app.detection.model_pool import TriedModel
from app.detection.registry import describe_detector
from app.detection.trial import cost_of
from app.pipeline.run_segment import index_video, run_segment
from app.pipeline.runner import IndexItem, IndexTask
from app.pipeline.segment_task import SegmentOutcome, SegmentTask
from app.video.decoder import DecoderPool
from app.video.results import Cancelled, IndexSummary


def measured_models(load: Callable[[str], Detector]) -> Callable[[str, Verdict | None], TriedModel]:
    """Return what finds models for a ModelPool: those that `load` returns, measured in this process."""

    def find(name: str, _: Verdict | None) -> TriedModel:
        detector = load(name)
        profile = measure(detector, MemoryMeter(detector.device))
        runtime = describe_runtime(detector.device, threads=torch.get_num_threads())
        facts = describe_detector(detector, profile, runtime)
        return TriedModel(facts, cost_of(profile), arrangement_of(profile), lambda: detector)

    return find


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
