"""When frames are shown: the times in an answer are those that ffprobe tells."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from blind import BlindRun
from clips import ClipFolder

from app.pipeline.detect_video import DetectionRequest
from app.pipeline.document import FrameTimes
from app.pipeline.formats import FormatContext, convert
from app.pipeline.options import DetectionOptions, DocumentFormat, Rendering
from app.pipeline.report import VideoReport
from app.video.decoder import DecoderPool

CONTEXT = FormatContext(video_name="clip", width=128, height=72, labels=("thing",))


def times_of_ffprobe(video: Path) -> list[float]:
    """The time of every frame, in the order in which they are shown."""
    entries = ("-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "json")
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-show_frames", *entries, video], check=True, capture_output=True
    )
    return [float(frame["best_effort_timestamp_time"]) for frame in json.loads(told.stdout)["frames"]]


def detect(video: Path, folder: Path, pool: DecoderPool, **options: Any) -> tuple[list[Any], VideoReport]:
    """Return the records of an answer with times, and the report on the video."""
    request = DetectionRequest(
        job_id="0" * 32,
        video=video,
        parts_folder=folder / "parts",
        document=folder / "document",
        pts=folder / "pts",
        options=DetectionOptions(**options),
        segment_frames=12,
    )
    report = BlindRun(request, pool).report
    assert report.video is not None
    times = FrameTimes(request.pts, Fraction(report.video.time_base))
    convert(request.document, Rendering(DocumentFormat.PAIRS, times=True), folder / "timed", CONTEXT, times)
    return json.loads((folder / "timed").read_bytes()), report.video


@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize(
    "name",
    [
        "h264.mp4",
        "h264_open_gop.mkv",
        "vfr.mkv",
        "h264.ts",  # begins at 1.48 seconds
        "far_from_zero.ts",
        "edit_list.mov",  # without the first 0.7 seconds of what is in it
    ],
)
def test_every_frame_has_the_time_that_ffprobe_tells(
    clips: ClipFolder, tmp_path: Path, pool: DecoderPool, name: str, stride: int
) -> None:
    video = clips.get(name)
    expected = times_of_ffprobe(video)
    records, report = detect(video, tmp_path, pool, stride=stride)
    assert records == [
        [frame_id, [], {"pts_seconds": expected[frame_id]}] for frame_id in range(0, len(expected), stride)
    ]
    assert report.start_seconds == expected[0]


def test_frames_without_time_stamps_follow_each_other_at_the_containers_rate(
    clips: ClipFolder, tmp_path: Path, pool: DecoderPool
) -> None:
    records, report = detect(clips.get("h264.h264"), tmp_path, pool, stride=5)
    assert [times["pts_seconds"] for _, _, times in records] == [number / 5 for number in range(10)]
    assert report.start_seconds is None
