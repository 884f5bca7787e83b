"""Every frame is accounted for, and nothing is called whole that may lack one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from index_summary import index

from app.pipeline.completeness import FrameTally, completeness_report
from app.pipeline.report import DamageReport, MissingFrames
from app.video.damage import DamagedPlace
from app.video.protocol.facts import Proof
from app.video.results import DecodeOutcome, IndexSummary
from app.video.segments import RANGES_KEPT, FrameRange

PLACE = DamagedPlace(4711, 1.5, 30, 33, "bytes that are no transport packet", 2)


def tally(
    analysed: int = 100, *, corrupt: tuple[FrameRange, ...] = (), undecodable: tuple[FrameRange, ...] = ()
) -> FrameTally:
    found = FrameTally()
    found.add(DecodeOutcome(analysed, undecodable, corrupt))
    return found


def test_a_video_with_every_frame_is_complete() -> None:
    assert completeness_report(tally(), index()).complete is True


@pytest.mark.parametrize(
    ("found", "summary"),
    [
        (tally(99), index()),
        (tally(), index(truncated=True)),
        (tally(), index(frames_without_id=1)),
        (tally(99, undecodable=(FrameRange(7, 7, "refused"),)), index()),
        (tally(97), index(lost=(40, 41, 42))),
        (tally(), index(damage=(PLACE,), damage_total=1, is_damage_harmless=False)),
    ],
    ids=["unreported", "truncated", "no picture", "undecodable", "lost", "damage"],
)
def test_whatever_may_be_missing_makes_a_video_incomplete(found: FrameTally, summary: IndexSummary) -> None:
    assert completeness_report(found, summary).complete is False


def test_damage_that_has_cost_no_frame_is_reported_and_does_no_harm() -> None:
    harmless = replace(PLACE, harmless=True)
    report = completeness_report(tally(), index(damage=(harmless,), damage_total=3, proof=Proof.CLOCK))
    assert report.complete is True
    assert report.damage == (
        DamageReport(
            position=4711,
            seconds=1.5,
            first_frame=30,
            last_frame=33,
            reason="bytes that are no transport packet",
            observations=2,
            harmless=True,
        ),
    )
    assert report.damage_left_out == 2


@pytest.mark.parametrize(
    ("proof", "corrupt", "is_complete"),
    [
        (Proof.TABLE, 99, True),  # the container lists its samples
        (Proof.CLOCK, 50, True),  # frames before and after it are there, without a gap
        (Proof.CLOCK, 99, False),  # the last frames: others may have followed
        (Proof.NONE, 50, False),
        (Proof.NONE, 1, True),  # before the first keyframe: it may need what the recording never held
    ],
)
def test_damaged_pictures_count_where_nothing_proves_that_no_frame_is_missing(
    proof: Proof, corrupt: int, *, is_complete: bool
) -> None:
    found = tally(corrupt=(FrameRange(corrupt, corrupt),))
    report = completeness_report(found, index(proof=proof, leading_frames=2))
    assert report.complete is is_complete
    assert report.frames_corrupt == 1


def test_lost_and_undecodable_frames_are_listed_together_in_order() -> None:
    found = tally(92, undecodable=(FrameRange(3, 4, "refused"), FrameRange(50, 50, "refused")))
    report = completeness_report(found, index(lost=(20, 21, 60, 61, 62)))
    assert report.frames_undecodable == 8
    assert [(gap.first, gap.last) for gap in report.undecodable] == [
        (3, 4),
        (20, 21),
        (50, 50),
        (60, 62),
    ]


def test_gaps_that_touch_across_segments_are_one_range() -> None:
    found = tally(3, undecodable=(FrameRange(3, 4, "refused"),))
    found.add(DecodeOutcome(2, (FrameRange(5, 6, "refused"), FrameRange(9, 9, "crash"))))
    report = completeness_report(found, index(10))
    assert report.undecodable == (
        MissingFrames(first=3, last=6, reason="refused"),
        MissingFrames(first=9, last=9, reason="crash"),
    )
    assert report.frames_undecodable == 5


def test_the_list_of_ranges_is_capped_but_the_count_is_not() -> None:
    found = FrameTally()
    for number in range(RANGES_KEPT + 50):
        found.add(DecodeOutcome(1, (FrameRange(2 * number, 2 * number, "refused"),)))
    report = completeness_report(found, index(10_000))
    assert len(report.undecodable) == RANGES_KEPT
    assert report.undecodable_ranges_left_out == 50
    assert report.frames_undecodable == RANGES_KEPT + 50


def test_a_video_of_which_nearly_all_pictures_are_damaged_is_noise() -> None:
    assert tally(100, corrupt=(FrameRange(2, 98),)).is_noise
    assert not tally(100, corrupt=(FrameRange(2, 80),)).is_noise
    assert not tally(10, corrupt=(FrameRange(0, 9),)).is_noise
