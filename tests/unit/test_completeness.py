"""Every frame is accounted for."""

from __future__ import annotations

from app.pipeline.completeness import (
    UNDECODABLE_RANGES_KEPT,
    FrameRange,
    FrameTally,
    completeness_report,
)


def report(tally: FrameTally, indexed: int, *, truncated: bool = False, packets_refused: int = 0):
    return completeness_report(
        tally,
        frames_indexed=indexed,
        frames_wanted=indexed,
        packets_refused=packets_refused,
        truncated=truncated,
        notes=(),
    )


def test_a_video_with_every_frame_is_complete() -> None:
    tally = FrameTally()
    tally.add(analysed=10, corrupt=0, undecodable=())
    assert report(tally, 10)["complete"] is True


def test_a_missing_frame_that_nobody_reported_is_not_complete() -> None:
    tally = FrameTally()
    tally.add(analysed=9, corrupt=0, undecodable=())
    assert report(tally, 10)["complete"] is False


def test_a_truncated_video_is_not_complete() -> None:
    tally = FrameTally()
    tally.add(analysed=10, corrupt=0, undecodable=())
    assert report(tally, 10, truncated=True)["complete"] is False


def test_packets_that_gave_no_frame_to_count_make_a_video_incomplete() -> None:
    tally = FrameTally()
    tally.add(analysed=10, corrupt=0, undecodable=())
    assert report(tally, 10, packets_refused=1)["complete"] is False


def test_gaps_that_touch_across_segments_are_one_range() -> None:
    tally = FrameTally()
    tally.add(analysed=3, corrupt=1, undecodable=[FrameRange(3, 4, "damaged")])
    tally.add(analysed=2, corrupt=0, undecodable=[FrameRange(5, 6, "damaged"), FrameRange(9, 9, "crash")])
    found = report(tally, 10)
    assert found["undecodable"] == [
        {"first": 3, "last": 6, "reason": "damaged"},
        {"first": 9, "last": 9, "reason": "crash"},
    ]
    assert found["frames_undecodable"] == 5
    assert found["frames_corrupt"] == 1


def test_the_list_of_ranges_is_capped_but_the_count_is_not() -> None:
    tally = FrameTally()
    for number in range(UNDECODABLE_RANGES_KEPT + 50):
        tally.add(analysed=1, corrupt=0, undecodable=[FrameRange(2 * number, 2 * number, "damaged")])
    found = report(tally, 10_000)
    assert len(found["undecodable"]) == UNDECODABLE_RANGES_KEPT
    assert found["undecodable_ranges_left_out"] == 50
    assert found["frames_undecodable"] == UNDECODABLE_RANGES_KEPT + 50
