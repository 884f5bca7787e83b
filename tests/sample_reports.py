"""Reports and models as the engine tells them, for tests that run no video."""

from __future__ import annotations

from typing import Any

from app.detection.model_facts import ModelFacts, ModelState, ModelStatus, Refusal
from app.pipeline.report import Completeness, DetectionReport, DocumentReport, ModelReport, VideoReport
from app.video.protocol.facts import Proof
from app.video.sandbox_status import SandboxStatus

SHA256 = "0" * 64
SANDBOX = SandboxStatus(landlock_abi=6, seccomp=True, no_new_privileges=True, memory_limited=True)
VIDEO = VideoReport(
    container="mpegts",
    codec="h264",
    pixel_format="yuv420p",
    width=64,
    height=48,
    rotation_degrees=0,
    mirrored=False,
    frame_rate="25",
    sample_aspect_ratio="1",
    time_base="1/90000",
    start_seconds=1.4,
    duration_seconds=0.08,
    stream=0,
    other_streams=(),
    variable_frame_rate=False,
)


def model_report(name: str = "hog-people", *labels: str, sha256: str = SHA256) -> ModelReport:
    return ModelReport(name=name, sha256=sha256, device="cpu", labels=labels or ("person",))


def completeness(frames: int = 2, *, missing: int = 0) -> Completeness:
    """Of a video of which `missing` of its `frames` could not be decoded."""
    return Completeness(
        complete=missing == 0,
        frames_indexed=frames,
        frames_wanted=frames,
        frames_analysed=frames - missing,
        frames_undecodable=missing,
        undecodable=(),
        undecodable_ranges_left_out=0,
        frames_corrupt=0,
        corrupt=(),
        frames_doubtful=0,
        doubtful=(),
        frames_without_id=0,
        truncated=False,
        damage=(),
        damage_left_out=0,
        proof=Proof.TABLE,
        notes=(),
    )


def finished_report(
    size_bytes: int,
    sha256: str,
    *,
    video: VideoReport = VIDEO,
    model: ModelReport | None = None,
    found: Completeness | None = None,
) -> DetectionReport:
    """Of a job that has succeeded, whose document has so many bytes and this digest."""
    return DetectionReport(
        model=model or model_report(),
        video=video,
        completeness=found or completeness(),
        document=DocumentReport(bytes=size_bytes, sha256=sha256),
    )


def model_facts(name: str = "model", **changes: object) -> ModelFacts:
    facts: dict[str, Any] = {
        "sha256": SHA256,
        "labels": ("thing",),
        "input_size": (640, 480),
        "default_min_score": 0.5,
        "device": "cpu",
        "precision": "float32",
        "precision_effect": None,
        "batch_size": 4,
        "frames_per_second": 10.0,
        "memory_bytes": 100_000_000,
        "device_memory_bytes": 0,
        "runtime": "torch",
    }
    return ModelFacts(name=name, **(facts | changes))


def ready_model(name: str, *labels: str, sha256: str = SHA256) -> ModelStatus:
    facts = model_facts(name, sha256=sha256, labels=labels, batch_size=8, frames_per_second=20.5)
    return ModelStatus(name=name, state=ModelState.READY, facts=facts)


def loading_model(name: str) -> ModelStatus:
    return ModelStatus(name=name, state=ModelState.LOADING, facts=None)


def refused_model(name: str, detail: str = "It is broken.") -> ModelStatus:
    refusal = Refusal(code="model_fault", detail=detail)
    return ModelStatus(name=name, state=ModelState.REFUSED, facts=None, refusal=refusal)
