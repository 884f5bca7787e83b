"""Parts that an earlier run left behind are taken if they would come out the same, and else made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blind import BlindRun
from clips import ClipFolder

from app.detection.devices import describe_runtime
from app.pipeline.detect_video import DetectionRequest
from app.pipeline.options import DetectionOptions
from app.video.decoder import DecoderPool


def frames_analysed(request: DetectionRequest, pool: DecoderPool, runtime: str = "torch 2") -> int:
    """Run the request; return for how many frames the model was asked."""
    return BlindRun(request, pool, runtime).frames_analysed


@pytest.fixture
def request_(clips: ClipFolder, tmp_path: Path) -> DetectionRequest:
    return DetectionRequest(
        job_id="0" * 32,
        video=clips.get("h264.mp4"),
        parts_folder=tmp_path / "parts",
        document=tmp_path / "document",
        pts=tmp_path / "pts",
        options=DetectionOptions(),
        segment_frames=12,
    )


def test_parts_of_the_same_runtime_are_taken_and_those_of_another_are_not(
    request_: DetectionRequest, pool: DecoderPool
) -> None:
    frame_count = frames_analysed(request_, pool)
    assert frame_count == 50
    document, pts = request_.document.read_bytes(), request_.pts.read_bytes()
    assert len(pts) == 8 * frame_count
    (one, *_) = sorted(request_.parts_folder.glob("*.part"))
    one.unlink()
    assert 0 < frames_analysed(request_, pool) < frame_count
    for runtime in ("torch 3, 4 threads", "torch 3, 2 threads"):
        assert frames_analysed(request_, pool, runtime) == frame_count
    assert request_.document.read_bytes() == document
    assert request_.pts.read_bytes() == pts


def test_a_devices_runtime_tells_of_versions_and_of_the_threads_that_the_model_computes_with() -> None:
    runtime = describe_runtime("cpu", threads=2)
    assert f"torch {torch.__version__}, " in runtime
    assert describe_runtime("cpu", threads=3) != runtime
