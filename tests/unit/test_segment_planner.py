"""Segments are cut at keyframes, own every frame once, and do not depend on how packets arrive."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.video.damage import EvidenceList
from app.video.planner import SegmentNumbering, SegmentPlanner, SerialNumbering, UnusableTimestamps
from app.video.protocol.packets import Entry, Evidence, PacketFlag, PacketRecord
from app.video.sampling import Sampling
from app.video.segments import RANGES_KEPT, Segment

KEY = PacketFlag.KEY | PacketFlag.CLEAN
TICK = Fraction(1, 25)


def plan(
    packets: list[PacketRecord], segment_frames: int, *, first_shown_pts: int | None = None, piece: int = 1000
) -> list[Segment]:
    numbering = SegmentNumbering(Sampling(), TICK)
    planner = SegmentPlanner(numbering, segment_frames=segment_frames, first_shown_pts=first_shown_pts)
    segments: list[Segment] = []
    for first in range(0, len(packets), piece):
        segments += planner.feed(packets[first : first + piece])
    return [*segments, *planner.finish()]


def packets_of(*runs: list[int], soft: tuple[int, ...] = ()) -> list[PacketRecord]:
    """Packets of runs, each a list of time stamps that begins with its keyframe's."""
    packets: list[PacketRecord] = []
    for number, run in enumerate(runs):
        for place, pts in enumerate(run):
            flags = 0 if place else PacketFlag.KEY if number in soft else KEY
            ordinal = len(packets)
            packets.append(PacketRecord(ordinal, pts, ordinal, ordinal * 100, 100, flags))
    return packets


@st.composite
def videos(draw: st.DrawFn) -> list[PacketRecord]:
    """Open and closed GOPs with reordered pictures, as encoders make them."""
    runs: list[list[int]] = []
    start = draw(st.integers(-1000, 1000))
    for number in range(draw(st.integers(1, 12))):
        leading = draw(st.integers(0, 3)) if number else 0
        trailing = draw(st.integers(0, 6))
        key = start + leading
        before = draw(st.permutations(range(start, key)))
        after = draw(st.permutations(range(key + 1, key + 1 + trailing)))
        runs.append([key, *before, *after])
        start = key + 1 + trailing
    return packets_of(*runs)


@given(videos(), st.integers(1, 30), st.integers(1, 7))
def test_every_frame_is_owned_once_in_presentation_order(
    packets: list[PacketRecord], segment_frames: int, piece: int
) -> None:
    segments = plan(packets, segment_frames, piece=piece)
    owned = [pts for segment in segments for pts in segment.pts.tolist()]
    assert owned == sorted(packet.pts for packet in packets if packet.pts is not None)
    assert [segment.number for segment in segments] == list(range(len(segments)))
    assert [s.first_frame_id for s in segments] == [
        sum(t.frame_count for t in segments[:n]) for n in range(len(segments))
    ]
    assert all(segment.frame_count >= segment_frames for segment in segments[:-1])


@given(videos(), st.integers(1, 30))
def test_a_segment_reads_from_its_keyframe_to_the_last_of_its_frames(
    packets: list[PacketRecord], segment_frames: int
) -> None:
    for segment in plan(packets, segment_frames):
        first = segment.entry.ordinal
        read = packets[first : first + segment.packet_count]
        assert read[0].flags & PacketFlag.CLEAN
        assert set(segment.pts.tolist()) <= {packet.pts for packet in read}
        assert segment.number == 0 or segment.pts[0] == segment.entry.pts
        for entry, rank in segment.later_entries:
            key = packets[entry.ordinal]
            assert key.flags & PacketFlag.CLEAN
            assert key.pts is not None
            assert segment.pts[rank] == key.pts
            assert all(p.pts < key.pts for p in packets[: entry.ordinal] if p.pts is not None)


@given(videos(), st.integers(1, 30))
def test_the_plan_does_not_depend_on_how_packets_arrive(
    packets: list[PacketRecord], segment_frames: int
) -> None:
    def shape(segments: list[Segment]) -> list[tuple[int, Entry, int]]:
        return [(s.frame_count, s.entry, s.packet_count) for s in segments]

    assert shape(plan(packets, segment_frames, piece=1)) == shape(plan(packets, segment_frames, piece=1000))


def test_leading_pictures_belong_to_the_segment_before() -> None:
    first, second = plan(packets_of([0, 2, 1], [5, 3, 4, 6]), 3)
    assert first.pts.tolist() == [0, 1, 2, 3, 4]
    assert first.packet_count == 6  # up to the last leading picture
    assert second.pts.tolist() == [5, 6]
    assert second.entry.ordinal == 3


def test_the_first_segment_comes_out_before_the_video_ends() -> None:
    packets = packets_of(*([n * 10 + k for k in range(10)] for n in range(10)))
    planner = SegmentPlanner(SegmentNumbering(Sampling(), TICK), segment_frames=10, first_shown_pts=None)
    assert [segment.number for segment in planner.feed(packets[:60])] == [0]


def test_no_segment_begins_at_a_keyframe_that_needs_what_came_before() -> None:
    segments = plan(packets_of([0, 1], [2, 3], [4, 5], soft=(1,)), 1)
    assert [segment.pts.tolist() for segment in segments] == [[0, 1, 2, 3], [4, 5]]


def test_no_segment_begins_where_an_earlier_packet_is_shown_later() -> None:
    segments = plan(packets_of([0, 1, 3], [2, 4], [5, 6]), 1)
    assert [segment.pts.tolist() for segment in segments] == [[0, 1, 2, 3, 4], [5, 6]]


def test_discarded_packets_are_read_but_own_no_frame() -> None:
    packets = packets_of([0, 1, 2], [3, 4])
    packets[1] = packets[1]._replace(flags=PacketFlag.DISCARD)
    (segment,) = plan(packets, 100)
    assert segment.pts.tolist() == [0, 2, 3, 4]
    assert segment.packet_count == 5


def test_a_segment_reads_on_to_the_second_field_of_its_last_leading_picture() -> None:
    packets = packets_of([0, 1, 2], [5, 3, 4, 6])
    fields: list[PacketRecord] = []
    for packet in packets:
        second = packet._replace(flags=PacketFlag.DISCARD)
        fields += [packet._replace(ordinal=len(fields)), second._replace(ordinal=len(fields) + 1)]
    first, second_segment = plan(fields, 3)
    assert first.pts.tolist() == [0, 1, 2, 3, 4]
    assert first.packet_count == 2 * 6
    assert second_segment.packet_count == 2 * 4


def test_pictures_before_the_first_that_a_decoder_shows_are_no_frames() -> None:
    (segment,) = plan(packets_of([2, 0, 1, 3]), 100, first_shown_pts=2)
    assert segment.pts.tolist() == [2, 3]
    packets = packets_of([0, 1], [2, 3])
    packets[0] = packets[0]._replace(flags=0)
    (segment,) = plan(packets, 100, first_shown_pts=2)
    assert segment.pts.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (([0, 1, 1], [2, 3]), "share"),
        (([0, 1], [2, 3], [1, 4]), "backward"),
    ],
)
def test_time_stamps_that_tell_nothing_apart_are_refused(runs: tuple[list[int], ...], reason: str) -> None:
    with pytest.raises(UnusableTimestamps, match=reason):
        plan(packets_of(*runs), 1)


def test_packets_without_time_stamps_are_refused_and_earlier_segments_stand() -> None:
    packets = packets_of([0, 1], [2, 3], [4, 5])
    packets[5] = packets[5]._replace(pts=None)
    planner = SegmentPlanner(SegmentNumbering(Sampling(), TICK), segment_frames=1, first_shown_pts=None)
    segments = list(planner.feed(packets))
    with pytest.raises(UnusableTimestamps) as refused:  # noqa: PT012 - what comes before it counts
        for segment in planner.finish():
            segments.append(segment)  # noqa: PERF402
    assert [segment.pts.tolist() for segment in segments] == [[0, 1]]
    assert refused.value.entry.ordinal == 2


def test_a_video_without_keyframes_is_not_kept_in_memory() -> None:
    packets = packets_of(list(range(20_000)))
    planner = SegmentPlanner(SegmentNumbering(Sampling(), TICK), segment_frames=1, first_shown_pts=None)
    with pytest.raises(UnusableTimestamps, match="no keyframe"):
        list(planner.feed(packets))


def test_counted_frames_become_segments_of_one_entry() -> None:
    entry = Entry(7, None, None, None, 1)
    numbering = SegmentNumbering(Sampling(stride=2), TICK)
    serial = SerialNumbering(numbering, entry, segment_frames=3, leading=(7, 8, 9), ticks_a_frame=1)
    segments = list(serial.feed([8, 9, 10, None, 12, 3, None, *range(5, 40)]))
    assert [s.frames_before for s in segments] == [2, 5]
    serial.skipped = (5,)
    segments += serial.finish()
    assert [s.pts.tolist() for s in segments[:2]] == [[10, 11, 12], [3, 4, 5]]
    assert [s.wanted.tolist() for s in segments[:2]] == [[True, False, True], [False, True, False]]
    assert {s.entry for s in segments} == {entry}
    assert segments[0].skipped == ()
    assert segments[-1].skipped == (5,)
    assert [n for s in segments for n in s.frame_ids.tolist()] == list(range(40))


@pytest.mark.parametrize(
    ("pts", "is_variable"), [([0, 40, 80, 120], False), ([0, 33, 67, 100], False), ([0, 40, 120, 160], True)]
)
def test_a_variable_frame_rate_is_told_from_a_rounded_clock(pts: list[int], is_variable: bool) -> None:
    numbering = SegmentNumbering(Sampling(), Fraction(1, 1000))
    planner = SegmentPlanner(numbering, segment_frames=10, first_shown_pts=None)
    list(planner.feed(packets_of(pts)))
    list(planner.finish())
    assert numbering.clock.is_variable == is_variable


def counted_from(packets: list[PacketRecord], segment_frames: int) -> tuple[list[int], int | None]:
    """The time stamps of the frames in segments, and the packet from which frames are to be counted."""
    numbering = SegmentNumbering(Sampling(), TICK)
    planner = SegmentPlanner(numbering, segment_frames=segment_frames, first_shown_pts=None)
    pts: list[int] = []
    try:
        for segment in chain(planner.feed(packets), planner.finish()):
            pts += segment.pts.tolist()
    except UnusableTimestamps as unusable:
        return pts, unusable.entry.ordinal
    return pts, None


@st.composite
def odd_videos(draw: st.DrawFn) -> list[PacketRecord]:
    """Videos in which a few time stamps are wrong, missing or equal to others."""
    packets = draw(videos())
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(packets) - 1))
        pts = draw(st.one_of(st.none(), st.integers(-1000, 1100)))
        packets[at] = packets[at]._replace(pts=pts)
    return packets


@given(odd_videos())
def test_where_counting_begins_does_not_depend_on_the_segments_length(packets: list[PacketRecord]) -> None:
    plans = [counted_from(packets, length) for length in (1, 3, 15, 1000)]
    assert all(other == plans[0] for other in plans)


def test_a_frame_whose_time_stamp_lies_far_back_is_counted() -> None:
    packets = [PacketRecord(n, 10 * n, n, n, 1, KEY if n % 10 == 0 else 0) for n in range(100)]
    packets[85] = packets[85]._replace(pts=605)  # 24 frames before it is decoded
    pts, counted = counted_from(packets, 1000)
    assert counted == 70
    assert pts == [10 * n for n in range(70)]


def test_a_frame_whose_time_stamp_lies_far_ahead_is_counted() -> None:
    packets = [PacketRecord(n, 10 * n, n, n, 1, KEY if n % 50 == 0 else 0) for n in range(100)]
    packets[20] = packets[20]._replace(pts=405)
    assert counted_from(packets, 1000) == ([], 0)


def numbered(
    pts: list[int],
    evidence: Sequence[int] = (),
    *,
    segment_frames: int = 1000,
    sampling: Sampling | None = None,
) -> tuple[SegmentNumbering, list[int]]:
    """Plan packets of those time stamps with a keyframe every tenth, and return the ids that they get."""
    seen = EvidenceList()
    numbering = SegmentNumbering(sampling or Sampling(), TICK, evidence=seen, nominal_step=Fraction(10))
    planner = SegmentPlanner(numbering, segment_frames=segment_frames, first_shown_pts=None)
    for place in evidence:
        seen.add(Evidence(place, place, 1, "torn"))
    packets = [PacketRecord(n, p, n, n, 1, KEY if n % 10 == 0 else 0) for n, p in enumerate(pts)]
    ids = [i for s in chain(planner.feed(packets), planner.finish()) for i in s.frame_ids.tolist()]
    numbering.finish()
    return numbering, ids


REGULAR = [10 * n for n in range(100)]


@pytest.mark.parametrize("segment_frames", [1, 7, 1000])
@pytest.mark.parametrize(("first", "end"), [(40, 41), (37, 52), (50, 60), (41, 50)])
def test_frames_lost_from_a_regular_clock_leave_their_ids_free(
    first: int, end: int, segment_frames: int
) -> None:
    left = REGULAR[:first] + REGULAR[end:]
    numbering, ids = numbered(left, [first], segment_frames=segment_frames)
    assert ids == [pts // 10 for pts in left]
    assert [(gap.first, gap.last) for gap in numbering.lost.kept] == [(first, end - 1)]
    assert numbering.frames == numbering.frames_wanted == 100


def test_a_gap_without_evidence_of_loss_is_a_variable_frame_rate() -> None:
    numbering, ids = numbered(REGULAR[:40] + REGULAR[50:], [80])
    assert ids == list(range(90))
    assert not numbering.lost.frames
    assert numbering.clock.is_variable


def test_ids_after_a_gap_on_an_irregular_clock_are_ranks_and_said_to_be_unsure() -> None:
    stamps = [n * n for n in range(100)]
    numbering, ids = numbered(stamps[:40] + stamps[50:], [40])
    assert ids == list(range(90))
    assert numbering.unsure_from == 23


def test_sampling_wants_the_frames_that_it_would_want_of_the_intact_video() -> None:
    left = REGULAR[:35] + REGULAR[55:]
    for sampling in (Sampling(stride=10), Sampling(fps=1.0), Sampling(start_seconds=2, end_seconds=30)):
        whole, damaged = numbered(REGULAR, sampling=sampling)[0], numbered(left, [35], sampling=sampling)[0]
        assert damaged.frames_wanted == whole.frames_wanted
    assert [gap.first for gap in numbered(left, [35], sampling=Sampling(stride=10))[0].lost.kept] == [40, 50]


def test_the_report_names_the_frames_next_to_each_damaged_place() -> None:
    numbering, _ = numbered(REGULAR[:40] + REGULAR[45:], [40])
    (place,) = numbering.evidence.report(range(0))
    assert (place.position, place.first_frame, place.last_frame, place.reason) == (40, 39, 45, "torn")
    assert place.seconds == float(390 * TICK)


def test_a_frame_that_is_hidden_because_its_time_stamp_is_damaged_is_counted() -> None:
    numbering = SegmentNumbering(Sampling(), TICK)
    planner = SegmentPlanner(numbering, segment_frames=100, first_shown_pts=None)
    packets = packets_of([10 * n for n in range(40)])
    packets = [packet._replace(dts=packet.pts) for packet in packets]
    hidden = PacketFlag.DISCARD
    packets[20] = packets[20]._replace(pts=9000, flags=hidden)  # beyond the end of what an edit list shows
    packets[38:] = [packet._replace(flags=hidden) for packet in packets[38:]]  # hidden on purpose
    (segment,) = [*planner.feed(packets), *planner.finish()]
    assert segment.frame_count == 37
    assert planner.hidden_by_damage == 1


def test_frames_that_a_cut_hides_are_not_displaced_though_their_decoding_times_are_a_tick_apart() -> None:
    numbering = SegmentNumbering(Sampling(), TICK, nominal_step=Fraction(640))
    planner = SegmentPlanner(numbering, segment_frames=100, first_shown_pts=None)
    packets = packets_of([640 * n for n in range(-9, 30)])
    packets = [packet._replace(dts=(packet.pts or 0) - 1280) for packet in packets]
    packets[:3] = [packet._replace(dts=-5760 + n) for n, packet in enumerate(packets[:3])]
    packets[:9] = [packet._replace(flags=packet.flags | PacketFlag.DISCARD) for packet in packets[:9]]
    (segment,) = [*planner.feed(packets), *planner.finish()]
    assert segment.frame_count == 30
    assert planner.hidden_by_damage == 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(stride=2), Sampling(fps=1.0)])
def test_a_gap_that_claims_millions_of_lost_frames_keeps_a_thousand_ranges(sampling: Sampling) -> None:
    count = 19_000_000
    left = REGULAR[:50] + [pts + 10 * count for pts in REGULAR[50:]]
    numbering, _ = numbered(left, [50], sampling=sampling)
    assert numbering.frames == count + 100
    lost = numbering.lost
    assert len(lost.kept) <= RANGES_KEPT
    assert sum(gap.frame_count for gap in lost.kept) + lost.dropped == lost.frames


def test_the_frames_next_to_a_damaged_place_do_not_depend_on_the_segments_length() -> None:
    runs = [[n, *range(n - 3, n), *range(n + 1, n + 7)] for n in range(3, 200, 10)]
    for place in range(1, 199):
        found = []
        for segment_frames in (1, 7, 1000):
            seen = EvidenceList()
            seen.add(Evidence(place, None, 1, "torn"))
            numbering = SegmentNumbering(Sampling(), TICK, evidence=seen)
            planner = SegmentPlanner(numbering, segment_frames=segment_frames, first_shown_pts=None)
            list(chain(planner.feed(packets_of(*runs)), planner.finish()))
            numbering.finish()
            found.append(seen.report(range(0)))
        assert found[0] == found[1] == found[2]
