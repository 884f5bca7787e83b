"""The account of a video's frames: which are in the document, which are not, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

UNDECODABLE_RANGES_KEPT = 1000


@dataclass(frozen=True, slots=True)
class FrameRange:
    """The frames `first` … `last`, both included."""

    first: int
    last: int
    reason: str

    @property
    def frame_count(self) -> int:
        return self.last - self.first + 1


@dataclass(slots=True)
class FrameTally:
    """Sums up what the segments report. Ranges must come in order, so add segments in order."""

    analysed: int = 0
    undecodable: int = 0
    corrupt: int = 0
    ranges: list[FrameRange] = field(default_factory=list)
    ranges_dropped: int = 0

    def add(self, *, analysed: int, corrupt: int, undecodable: Iterable[FrameRange]) -> None:
        self.analysed += analysed
        self.corrupt += corrupt
        for stretch in undecodable:
            self.undecodable += stretch.frame_count
            self._keep(stretch)

    def _keep(self, stretch: FrameRange) -> None:
        last = self.ranges[-1] if self.ranges else None
        if last and last.last + 1 == stretch.first and last.reason == stretch.reason:
            self.ranges[-1] = FrameRange(last.first, stretch.last, stretch.reason)
        elif len(self.ranges) < UNDECODABLE_RANGES_KEPT:
            self.ranges.append(stretch)
        else:
            self.ranges_dropped += 1


def completeness_report(
    tally: FrameTally,
    *,
    frames_indexed: int,
    frames_wanted: int,
    packets_refused: int,
    truncated: bool,
    notes: Iterable[str],
) -> dict[str, Any]:
    """The ``completeness`` member of a job's report.

    ``complete``: every frame of the video that was asked for is in the document, and the video is whole.
    `packets_refused` counts, where frames have no time stamps to know them by, the packets that gave none.
    """
    is_whole = not truncated and not packets_refused
    return {
        "complete": is_whole and tally.undecodable == 0 and tally.analysed == frames_wanted,
        "frames_indexed": frames_indexed,
        "frames_wanted": frames_wanted,
        "frames_analysed": tally.analysed,
        "frames_undecodable": tally.undecodable,
        "undecodable": [
            {"first": stretch.first, "last": stretch.last, "reason": stretch.reason}
            for stretch in tally.ranges
        ],
        "undecodable_ranges_left_out": tally.ranges_dropped,
        "frames_corrupt": tally.corrupt,
        "packets_refused": packets_refused,
        "truncated": truncated,
        "notes": list(notes),
    }
