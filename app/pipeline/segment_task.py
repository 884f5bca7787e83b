"""One segment of one video: the unit of work that can run anywhere, and again. Imports no torch."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.detection.model_facts import ModelIdentity
from app.storage.parts import Part, PartStore, TornPart
from app.video.protocol.facts import VideoFacts
from app.video.results import DecodeOutcome
from app.video.segments import FrameRange, Segment


@dataclass(frozen=True, slots=True)
class RecordRules:
    """Which boxes are written, and with which labels."""

    class_names: tuple[str, ...]
    min_score: float  # compared with the score as written
    labels: frozenset[str] | None = None  # None: all


@dataclass(frozen=True, slots=True, eq=False)
class SegmentTask:
    """Everything that the run of a segment depends on; picklable."""

    job_id: str
    video: Path
    facts: VideoFacts
    segment: Segment
    parts_folder: Path
    identity: str  # SHA-256 of everything that decides the part's bytes: model, options, settings, versions
    model: str
    model_identity: ModelIdentity  # of `model`, when the job began
    max_side: int | None  # pixels; frames are scaled down to it before the model scales them
    rules: RecordRules


@dataclass(frozen=True, slots=True)
class SegmentOutcome(DecodeOutcome):
    """A finished segment: its part, and what the part's footer says about its frames."""

    part: Part = field(kw_only=True)

    @property
    def frames_settled(self) -> int:
        """Frames that are analysed, or known to be undecodable."""
        return self.frames_decoded + sum(gap.frame_count for gap in self.undecodable)


def finished_segment(task: SegmentTask) -> SegmentOutcome | None:
    """Return the outcome of an earlier run of `task`; None if its part is absent, torn or of another plan."""
    store = PartStore(task.parts_folder)
    try:
        part = store.read(task.segment.number)
    except TornPart:
        return None
    if part is None or part.footer["plan"] != plan_of(task):
        return None
    return outcome_of(part)


def plan_of(task: SegmentTask) -> list[Any]:
    """Return what `task`'s part records about how and for which frames it was made."""
    return [task.identity, zlib.crc32(task.segment.frame_ids.tobytes())]


def outcome_of(part: Part) -> SegmentOutcome:
    """Read the outcome of a segment from its whole part."""
    footer = part.footer
    return SegmentOutcome(
        part=part,
        frames_decoded=footer["analysed"],
        corrupt=tuple(FrameRange(*stretch) for stretch in footer["corrupt"]),
        doubtful=tuple(FrameRange(*stretch) for stretch in footer["doubtful"]),
        undecodable=tuple(FrameRange(*gap) for gap in footer["undecodable"]),
    )
