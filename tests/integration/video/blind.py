"""Whole jobs of a detector that finds nothing, without the engine."""

from __future__ import annotations

from torch import Tensor

from app.detection.detector import Detections
from app.detection.device import DeviceThread
from app.pipeline.detect_video import DetectionProgress, DetectionRequest, detect_video
from app.pipeline.report import DetectionReport
from app.pipeline.runner import LocalRunner
from app.pipeline.segment_task import Cancelled, PhaseClock, SegmentOutcome, SegmentTask, run_segment
from app.video.decoder import DecoderPool


class Blind:
    """Finds nothing, and counts the frames in which it does not."""

    name = "blind"
    fingerprint = "0" * 64
    class_names = ("thing",)
    default_min_score = 0.5
    batch_size = 4
    device = "cpu"
    precision = "float32"
    takes_device_frames = False
    frame_count = 0

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def detect(self, frames: Tensor) -> list[Detections]:
        self.frame_count += len(frames)
        return [Detections.empty() for _ in frames]


class BlindRun:
    """One run of a request, and what came of it."""

    def __init__(self, request: DetectionRequest, pool: DecoderPool) -> None:
        self.detector = Blind()
        self._pool = pool
        self._device = DeviceThread(self.detector)
        with self._device, LocalRunner(slots=1, run=self._segment) as runner:
            self.report: DetectionReport = detect_video(
                request,
                decoders=pool,
                detector=self.detector,
                runner=runner,
                observe=self._observe,
                cancelled=lambda: False,
            )

    @property
    def frames_analysed(self) -> int:
        """For how many frames the model was asked."""
        return self.detector.frame_count

    def _observe(self, progress: DetectionProgress, _: DetectionReport) -> None:
        self.progress = progress

    def _segment(self, task: SegmentTask, cancelled: Cancelled) -> SegmentOutcome:
        return run_segment(
            task,
            decoders=self._pool,
            device=self._device,
            cancelled=cancelled,
            clock=PhaseClock(lambda _phase, _seconds: None),
            advance=lambda _count: None,
        )
