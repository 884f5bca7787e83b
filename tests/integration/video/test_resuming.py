"""Parts that an earlier run left behind are taken if they would come out the same, and else made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clips import ClipFolder
from torch import Tensor

from app.detection.detector import Detections
from app.detection.device import DeviceThread
from app.detection.runtime import describe_runtime
from app.pipeline.detect_video import DetectionRequest, detect_video
from app.pipeline.options import DetectionOptions
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


def frames_analysed(request: DetectionRequest, pool: DecoderPool) -> int:
    """Run the request; return for how many frames the model was asked."""
    detector = Blind()

    def run(task: SegmentTask, cancelled: Cancelled) -> SegmentOutcome:
        return run_segment(
            task,
            decoders=pool,
            device=device,
            cancelled=cancelled,
            clock=PhaseClock(lambda _phase, _seconds: None),
            advance=lambda _count: None,
        )

    with DeviceThread(detector) as device, LocalRunner(slots=1, run=run) as runner:
        detect_video(
            request,
            decoders=pool,
            detector=detector,
            runner=runner,
            observe=lambda _progress, _report: None,
            cancelled=lambda: False,
        )
    return detector.frame_count


@pytest.fixture
def request_(clips: ClipFolder, tmp_path: Path) -> DetectionRequest:
    return DetectionRequest(
        job_id="0" * 32,
        video=clips.get("h264.mp4"),
        parts_folder=tmp_path / "parts",
        document=tmp_path / "document",
        options=DetectionOptions(),
        segment_frames=12,
        runtime="torch 2, 4 threads",
    )


def test_parts_of_the_same_runtime_are_taken_and_those_of_another_are_not(
    request_: DetectionRequest, pool: DecoderPool
) -> None:
    frame_count = frames_analysed(request_, pool)
    assert frame_count == 50
    document = request_.document.read_bytes()
    (one, *_) = sorted(request_.parts_folder.glob("*.part"))
    one.unlink()
    assert 0 < frames_analysed(request_, pool) < frame_count
    for runtime in ("torch 3, 4 threads", "torch 3, 2 threads"):
        assert frames_analysed(replace(request_, runtime=runtime), pool) == frame_count
    assert request_.document.read_bytes() == document


def test_a_devices_runtime_tells_of_versions_and_of_the_threads_that_the_model_computes_with() -> None:
    threads = torch.get_num_threads()
    device = DeviceThread(Blind())
    assert device.runtime == describe_runtime("cpu", threads=threads)
    assert f"torch {torch.__version__}, " in device.runtime
    assert describe_runtime("cpu", threads=threads + 1) != device.runtime
