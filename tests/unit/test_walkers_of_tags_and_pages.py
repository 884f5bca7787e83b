"""The walkers of Ogg, FLV and MPEG program streams: what they let pass, and what they note where."""

from __future__ import annotations

import pytest
from walking import flv, ivf, ogg_page, ps_pack, ps_packet, walk

PAGE = len(ogg_page(1, 0))


def pages(first: int, last: int, *, serial: int = 1) -> bytes:
    return b"".join(
        ogg_page(serial, number, flags=2 * (number == 0) | 4 * (number == last))
        for number in range(first, last + 1)
    )


def test_intact_ogg_files_have_no_break():
    alternate = b"".join(
        ogg_page(serial, number, flags=2 * (number == 0) | 4 * (number == 40))
        for number in range(41)
        for serial in (1, 2)
    )
    assert walk("ogg", alternate) == []
    assert walk("ogg", pages(0, 30) + pages(0, 20)) == []  # chained, with the same serial number
    assert walk("ogg", pages(7, 30)) == []  # a recording that begins late


def test_a_missing_page_is_noted():
    data = pages(0, 30)
    assert walk("ogg", data[: 9 * PAGE] + data[11 * PAGE :]) == [
        (9 * PAGE, "a page is missing: page 11 of a stream comes after page 8")
    ]


def test_pages_may_jump_from_the_headers_of_a_live_stream():
    live = ogg_page(1, 0, flags=2, granule=0) + ogg_page(1, 1, granule=0) + pages(500, 510)
    assert walk("ogg", live) == []


def test_bytes_that_are_no_page_are_one_break():
    data = pages(0, 30)
    assert walk("ogg", data[: 9 * PAGE] + b"\0" * 7000 + data[9 * PAGE :]) == [
        (9 * PAGE, "bytes that are no page")
    ]


def test_an_ogg_file_that_is_cut_is_noted():
    data = pages(0, 30)
    no_end = (20 * PAGE, "no last page: a stream stops without its end mark")
    assert walk("ogg", data[: 20 * PAGE]) == [no_end]
    notes = walk("ogg", data[: 20 * PAGE - 100])
    assert notes is not None
    assert notes[0] == (19 * PAGE, "the file ends inside a page")


def test_a_number_that_goes_beyond_32_bits_begins_again():
    assert walk("ogg", ogg_page(1, 2**32 - 1, flags=2) + ogg_page(1, 0, flags=4)) == []


@pytest.mark.parametrize("lengths", ["right", "zero", "bare"])
def test_intact_flv_files_have_no_break_however_they_store_lengths(lengths: str):
    assert walk("flv", flv(*[50, 900] * 40, lengths=lengths)) == []


def test_an_flv_file_may_lack_the_last_length():
    assert walk("flv", flv(*[700] * 40)[:-4]) == []


@pytest.mark.parametrize("lengths", ["right", "zero"])
def test_foreign_bytes_in_an_flv_file_are_noted_and_the_rest_is_checked(lengths: str):
    data = flv(*[700] * 80, lengths=lengths)
    place = 13 + 715 * 20
    notes = walk("flv", data[:place] + b"\x99" * 500 + data[place : -715 * 20 + 3] + data[-715 * 20 + 9 :])
    assert notes is not None
    assert 2 <= len(notes) <= 3
    assert abs(notes[0][0] - place) < 730
    assert abs(notes[1][0] - (len(data) + 500 - 715 * 20)) < 1500


def test_zeros_are_no_tags_even_where_lengths_are_stored_as_zero():
    data = flv(*[700] * 40, lengths="zero")
    assert walk("flv", data[:14313] + bytes(7150) + data[21463:]) != []


def test_an_flv_file_that_is_cut_is_noted():
    data = flv(*[700] * 40)
    assert walk("flv", data[:-300]) == [(13 + 715 * 39, "the file ends inside a tag")]
    assert walk("flv", data[:-2]) == [(len(data) - 4, "the file ends inside a tag")]


@pytest.mark.parametrize(("count", "step"), [(0, 1), (0xFFFFFFFF, 1), (40, 1), (39, 1), (1600, 40)])
def test_intact_ivf_files_have_no_break_whatever_the_header_counts(count: int, step: int):
    assert walk("ivf", ivf(*[700] * 40, count=count, step=step)) == []


def test_damage_in_an_ivf_file_is_noted_where_it_is():
    data, place = ivf(*[700] * 40, count=40), 32 + 712 * 20
    assert walk("ivf", data[:place] + bytes(712) + data[place + 712 :]) == [
        (place, "bytes that are no frame")
    ]
    assert walk("ivf", data[: place - 9] + data[place + 200 :]) == [(place, "the file ends inside a frame")]
    assert walk("ivf", data[:-1]) == [(len(data) - 712, "the file ends inside a frame")]
    assert walk("ivf", data[:place]) == [(place, "the header tells of more frames than there are")]


def test_ivf_frames_of_codecs_that_reorder_may_go_back_in_time():
    data = ivf(700, 700, 700, codec=b"H264")
    assert walk("ivf", data + data[32 + 712 : 32 + 2 * 712]) == []


@pytest.mark.parametrize("mpeg1", [False, True])
def test_intact_program_streams_have_no_break(mpeg1: bool):
    pack = ps_pack(mpeg1=mpeg1) + ps_packet(0xBB, 12) + ps_packet(0xE0, 1500) + ps_packet(0xC0, 400)
    padded = pack + bytes(900) + ps_packet(0xBE, 100) + pack
    assert walk("mpeg", pack * 30) == []
    assert walk("mpeg", pack * 5 + padded * 5 + b"\0\0\1\xb9") == []
    assert walk("mpeg", pack * 5 + b"\0\0\1\xb9" + bytes(200_000)) == []
    assert walk("mpeg", (pack * 30)[1000:]) == []  # a recording that begins inside a packet


def test_damage_in_a_program_stream_is_noted_where_it_is():
    pack = ps_pack() + ps_packet(0xE0, 1500) + ps_packet(0xC0, 400)
    size = len(pack)
    data = pack * 60
    twice = data[: 20 * size + 50] + data[20 * size + 90 : 40 * size] + b"\x77" * 300 + data[40 * size :]
    assert walk("mpeg", twice) == [
        (20 * size + len(ps_pack()) + 1506, "bytes that are no pack and no packet"),
        (40 * size - 40, "bytes that are no pack and no packet"),
    ]
    zeros = data[: 20 * size] + bytes(10 * size) + data[30 * size :]
    assert walk("mpeg", zeros) == [(20 * size, "zeros in place of packets")]
    assert walk("mpeg", data[:-9]) == [(len(data) - 406, "the file ends inside a packet")]


SECTORS = {  # 2048 bytes each, as they lie on discs and as ffmpeg writes them
    "disc": ps_pack() + ps_packet(0xE0, 2028),
    "two streams": ps_pack() + ps_packet(0xC0, 990) + ps_packet(0xBE, 1032),
    "packets alone": ps_packet(0xE0, 2042),
    "a first one": ps_pack(mpeg1=True) + ps_packet(0xBB, 12) + ps_packet(0xE0, 2012),
}


@pytest.mark.parametrize("usual", SECTORS)
def test_damage_among_thousands_of_sectors_is_noted_where_it_is(usual: str):
    sectors = [SECTORS["a first one"], *[SECTORS[usual]] * 5000]
    sectors[100::100] = [SECTORS["two streams"]] * 50
    assert walk("mpeg", b"".join(sectors)) == []
    sectors[700] = b"\x99" * 2048
    sectors[3001] = sectors[3001][:-40]
    notes = walk("mpeg", b"".join(sectors))
    assert notes is not None
    assert [at for at, _ in notes] == [700 * 2048, 3002 * 2048]


def test_a_video_cd_in_riff_has_no_walker():
    assert walk("mpeg", b"RIFF\0\0\0\0CDXA" + ps_pack()) is None


def test_a_flash_tag_without_the_picture_that_it_is_for_is_noted():
    data, place = flv(500, 300, 0, 400), len(flv(500)) - 4
    head = place + 4 + 11
    assert walk("flv", data) == []
    damaged = data[:head] + bytes(300) + data[head + 300 :]
    assert walk("flv", damaged) == [(place, "a picture's tag that holds none")]
    assert walk("flv", damaged[: place + 4] + b"\x08" + damaged[place + 5 :]) == []  # sound
