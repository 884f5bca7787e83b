"""The walker of MPEG transport streams: what it lets pass, and what it notes where."""

from __future__ import annotations

import pytest
from walking import ts_packet, ts_run, walk

MISSING = "packets are missing: the continuity counter of PID 256"
BLOCK = 3 * 8192  # packets that are looked at all at once


def joined(packets: list[bytes]) -> bytes:
    return b"".join(packets)


def test_an_intact_stream_has_no_break():
    packets = [
        packet for pair in zip(ts_run(256, 3, 400), ts_run(257, 9, 400), strict=True) for packet in pair
    ]
    assert walk("mpegts", joined(packets)) == []


def test_lost_packets_are_noted_with_their_pid_and_place():
    packets = ts_run(256, 0, 400)
    del packets[100:105]
    assert walk("mpegts", joined(packets)) == [(100 * 188, f"{MISSING} jumps from 3 to 9")]


def test_a_loss_between_two_blocks_is_noted():
    packets = ts_run(256, 0, BLOCK + 9000)
    del packets[BLOCK : BLOCK + 3]
    assert walk("mpegts", joined(packets)) == [(BLOCK * 188, f"{MISSING} jumps from 15 to 3")]


def test_lost_packets_are_noted_between_those_of_other_pids():
    video, sound = ts_run(256, 0, 60), ts_run(257, 0, 9)
    packets = [*video[:20], *sound[:3], *video[21:40], *sound[4:8], *video[40:]]
    assert walk("mpegts", joined(packets)) == [
        (23 * 188, f"{MISSING} jumps from 3 to 5"),
        (42 * 188, f"{MISSING[:-1]}7 jumps from 2 to 4"),
    ]


@pytest.mark.parametrize(
    ("reason", "extra"),
    [
        ("a null packet", [ts_packet(0x1FFF, 5)]),
        ("a repeated packet", [ts_run(256, 49, 1)[0]]),
        ("an adaptation field alone", [ts_packet(256, 49, has_payload=False)]),
        ("a scrambled packet of a PID that comes late", [b"\x47\x01\x00\xd0".ljust(188, b"\x99")]),
        ("a jump that is announced", [ts_packet(300, 1), ts_packet(300, 9, jumps=True)]),
    ],
)
def test_what_a_stream_may_hold_is_no_break(reason: str, extra: list[bytes]):
    follow = ts_run(256, 50, 50)
    if "scrambled" in reason:
        extra = [b"\x47\x02\x00\xd0".ljust(188, b"\x99")]
    assert walk("mpegts", joined(ts_run(256, 0, 50) + extra + follow)) == [], reason


def test_a_packet_that_comes_three_times_is_noted():
    packets = ts_run(256, 0, 50) + 2 * ts_run(256, 49, 1) + ts_run(256, 50, 50)
    assert walk("mpegts", joined(packets)) == [(51 * 188, f"{MISSING} stays at 1")]


def test_fifteen_lost_packets_do_not_pass_as_a_repeated_one():
    packets = ts_run(256, 0, 50) + ts_run(256, 65, 50)
    assert walk("mpegts", joined(packets)) == [(50 * 188, f"{MISSING} stays at 1")]


def test_a_packet_repeated_across_two_blocks_is_no_break():
    packets = [*ts_run(256, 0, BLOCK), *ts_run(256, BLOCK - 1, 1), *ts_run(256, BLOCK, 50)]
    assert walk("mpegts", joined(packets)) == []


def test_packets_that_the_receiver_marked_are_noted_once_in_8192_packets():
    packets = ts_run(256, 0, 9000)
    for number in (40, 41, 8900):
        packets[number] = ts_packet(256, number, is_bad=True)
    assert walk("mpegts", joined(packets)) == [
        (40 * 188, "packets marked as damaged by the receiver: 2"),
        (8900 * 188, "packets marked as damaged by the receiver: 1"),
    ]


@pytest.mark.parametrize("hole", [b"\x00" * 5000, b"\x99" * 188 * 20, b"\x99"])
def test_foreign_bytes_are_one_break_and_the_rest_is_checked(hole: bytes):
    later = ts_run(256, 70, 50) + ts_run(256, 125, 50)
    data = joined(ts_run(256, 0, 50)) + hole + joined(later)
    place = 50 * 188 + len(hole) + 50 * 188
    assert walk("mpegts", data) == [
        (50 * 188, "bytes that are no transport packet"),
        (place, f"{MISSING} jumps from 7 to 13"),
    ]


def test_a_recording_may_begin_inside_a_packet_but_not_with_foreign_bytes():
    data = joined(ts_run(256, 0, 100))
    assert walk("mpegts", data[100:]) == []
    assert walk("mpegts", b"\x99" * 3000 + data) == [(0, "bytes that are no transport packet")]


def test_a_file_that_ends_inside_a_packet_is_noted():
    data = joined(ts_run(256, 0, 100))
    assert walk("mpegts", data[:-1]) == [(99 * 188, "the file ends inside a packet")]


@pytest.mark.parametrize(("before", "behind"), [(b"\x47\x02\x03\x04", b""), (b"", b"\x47" * 16)])
def test_packets_with_bytes_around_them_are_read(before: bytes, behind: bytes):
    packets = [before + packet + behind for packet in ts_run(256, 0, 100)]
    assert walk("mpegts", joined(packets)) == []
    del packets[60]
    notes = walk("mpegts", joined(packets))
    assert notes is not None
    assert [reason for _, reason in notes] == [f"{MISSING} jumps from 11 to 13"]


def test_a_packet_whose_head_is_damaged_is_noted():
    def pes(number: int, start: bytes) -> bytes:
        packet = bytearray(ts_packet(256, number, start + b"\xe0\0\0"))
        packet[1] |= 0x40  # payload_unit_start_indicator
        return bytes(packet)

    packets = [pes(number, b"\0\0\1") for number in range(100)]
    assert walk("mpegts", joined(packets)) == []
    packets[70] = pes(70, bytes(3))
    assert walk("mpegts", joined(packets)) == [(70 * 188, "a packet's head is damaged")]
    packets[70] = pes(70, b"\0\2\xb0")  # a program map, of another stream that was joined to this one
    assert walk("mpegts", joined(packets)) == []


def stream(first_picture: int, pictures: int) -> list[bytes]:
    """A stream of its own: a table, twice, then pictures of three packets each, 3600 ticks apart."""
    packets = [ts_packet(0, number, b"\0\0\xb0table", begins=True) for number in range(2)]
    for number in range(pictures):
        counter = 3 * number
        packets.append(ts_packet(256, counter, pes_head(3600 * (first_picture + number)), begins=True))
        packets += ts_run(256, counter + 1, 2)
    return packets


def pes_head(ticks: int) -> bytes:
    stamp = [
        0x21 | ticks >> 29 & 14,
        ticks >> 22 & 255,
        ticks >> 14 & 254 | 1,
        ticks >> 7 & 255,
        ticks << 1 & 254 | 1,
    ]
    return b"\0\0\1\xe0\0\0\x80\x80\5" + bytes(stamp)


@pytest.mark.parametrize("first_picture", [0, 47, 20])
def test_whole_streams_that_follow_each_other_are_no_break(first_picture: int):
    assert walk("mpegts", joined(stream(0, 47) + stream(first_picture, 47))) == []


@pytest.mark.parametrize("pictures", [47, 48])  # after 48 the counter goes on by chance
def test_a_stream_that_is_missing_between_two_others_is_noted(pictures: int):
    notes = walk("mpegts", joined(stream(0, pictures) + stream(2 * pictures, pictures)))
    reason = "a stream begins anew, and the time of PID 256 leaps ahead"
    assert notes == [((3 * pictures + 4) * 188, reason)]


def test_a_loss_before_a_table_that_comes_again_is_noted():
    packets = stream(0, 47)
    packets += [packets[0], *ts_run(256, 16 * 9 + 5, 50)]
    notes = walk("mpegts", joined(packets))
    assert notes is not None
    assert [reason for _, reason in notes] == [f"{MISSING} jumps from 12 to 5"]
