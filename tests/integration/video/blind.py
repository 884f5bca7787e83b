"""Whole jobs of a detector that finds nothing, without the engine."""

from __future__ import annotations

from sample_reports import model_facts
from torch import Tensor

from app.detection.detector import Detections
from app.detection.device import DeviceThread
from app.pipeline.detect_video import DetectionProgress, DetectionRequest, detect_video
from app.pipeline.report import DetectionReport
from app.video.decoder import DecoderPool
from benchmarks.local_runner import LocalRunner


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


FACTS = model_facts(
    Blind.name,
    sha256=Blind.fingerprint,
    labels=Blind.class_names,
    input_size=(65536, 65536),
    default_min_score=Blind.default_min_score,
    batch_size=Blind.batch_size,
)


class BlindRun:
    """One run of a request, and what came of it."""

    def __init__(self, request: DetectionRequest, pool: DecoderPool, runtime: str = "test") -> None:
        self.detector = Blind()
        device, facts = DeviceThread(self.detector), FACTS.model_copy(update={"runtime": runtime})
        with device, LocalRunner(slots=1, decoders=pool, device_for=lambda _: device) as runner:
            self.report: DetectionReport = detect_video(
                request, model=facts, runner=runner, observe=self._observe, cancelled=lambda: False
            )

    @property
    def frames_analysed(self) -> int:
        """For how many frames the model was asked."""
        return self.detector.frame_count

    def _observe(self, progress: DetectionProgress, _: DetectionReport) -> None:
        self.progress = progress
