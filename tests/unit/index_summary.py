"""What the index of a whole video says, for tests to change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from app.video.protocol.facts import Proof
from app.video.results import IndexSummary
from app.video.segments import RangeList


def index(frames: int = 100, *, lost: tuple[int, ...] = (), **changes: object) -> IndexSummary:
    missing = RangeList()
    missing.add_ids(np.array(lost, dtype=np.int64), "the data is missing from the file")
    summary = IndexSummary(
        frames_indexed=frames,
        frames_wanted=frames,
        segments=1,
        start_pts=0,
        duration_seconds=4.0,
        variable_frame_rate=False,
        truncated=False,
        frames_without_id=0,
        notes=(),
        lost=missing,
        damage=(),
        damage_total=0,
        is_damage_harmless=True,
        leading_frames=0,
        proof=Proof.NONE,
    )
    return replace(summary, **changes)  # type: ignore[arg-type]
