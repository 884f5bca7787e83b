"""Which frames of a video are in the document, which are not, and why. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from heapq import merge

from app.pipeline.report import Completeness, DamageReport, FrameIds, MissingFrames
from app.video.protocol.facts import Proof
from app.video.protocol.packets import MAX_REORDER
from app.video.results import DecodeOutcome, IndexSummary
from app.video.segments import RangeList

# A video with this share of damaged pictures or more counts as undecodable: boxes found in it may be chance.
# None of 1,221 damaged videos reached it; encrypted ones whose headers are clear have 65 to 100 %, and most
# of those are refused by their containers.
_UNUSABLE_SHARE = 0.95
_UNUSABLE_FRAMES = 24  # in a shorter video, one damaged group of pictures may be all of it


@dataclass(slots=True)
class FrameTally:
    """Sums up what the segments report. Add segments in order: ranges must be in order."""

    analysed: int = 0
    undecodable: RangeList = field(default_factory=RangeList)
    corrupt: RangeList = field(default_factory=RangeList)
    doubtful: RangeList = field(default_factory=RangeList)
    last_corrupt: int = -1  # frame id

    def add(self, outcome: DecodeOutcome) -> None:
        self.analysed += outcome.frames_decoded
        self.undecodable.add(outcome.undecodable)
        self.corrupt.add(outcome.corrupt)
        self.doubtful.add(outcome.doubtful)
        if outcome.corrupt:
            self.last_corrupt = outcome.corrupt[-1].last

    @property
    def is_noise(self) -> bool:
        """Whether nearly all pictures are damaged, so that boxes found in them mean nothing."""
        return self.analysed >= _UNUSABLE_FRAMES and self.corrupt.frames >= _UNUSABLE_SHARE * self.analysed


def completeness_report(tally: FrameTally, index: IndexSummary) -> Completeness:
    """Return the ``completeness`` member of a job's report.

    ``complete``: every requested frame of the video is in the document, and there is no sign that the file
    has lost others.
    """
    missing = tally.undecodable.frames + index.lost.frames
    is_whole = not index.truncated and not index.frames_without_id and index.is_damage_harmless
    ranges = RangeList()
    ranges.add(merge(tally.undecodable.kept, index.lost.kept, key=lambda stretch: stretch.first))
    return Completeness(
        complete=is_whole
        and not missing
        and tally.analysed == index.frames_wanted
        and not _hints_at_loss(tally, index),
        frames_indexed=index.frames_indexed,
        frames_wanted=index.frames_wanted,
        frames_analysed=tally.analysed,
        frames_undecodable=missing,
        undecodable=tuple(MissingFrames(**asdict(gap)) for gap in ranges.kept),
        undecodable_ranges_left_out=ranges.dropped + tally.undecodable.dropped + index.lost.dropped,
        frames_corrupt=tally.corrupt.frames,
        corrupt=_frame_ids(tally.corrupt),
        frames_doubtful=tally.doubtful.frames,
        doubtful=_frame_ids(tally.doubtful),
        frames_without_id=index.frames_without_id,
        truncated=index.truncated,
        damage=tuple(DamageReport(**asdict(place)) for place in index.damage),
        damage_left_out=index.damage_total - len(index.damage),
        proof=index.proof,
        notes=index.notes,
    )


def _frame_ids(ranges: RangeList) -> tuple[FrameIds, ...]:
    return tuple(FrameIds(first=stretch.first, last=stretch.last) for stretch in ranges.kept)


def _hints_at_loss(tally: FrameTally, index: IndexSummary) -> bool:
    """Whether damaged pictures may hint at lost frames, because no table or clock proves the contrary.

    A clock proves what lies between two frames, not that the last frame is the last. The first pictures may
    depend on others from before the recording.
    """
    if index.proof is Proof.TABLE or tally.last_corrupt < index.leading_frames:
        return False
    is_within = tally.last_corrupt < index.frames_indexed - MAX_REORDER - 1
    return index.proof is Proof.NONE or not is_within
