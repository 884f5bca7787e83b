"""Where decoding can enter, told from a packet's bytes."""

from __future__ import annotations

import pytest

from app.video.child.keyframes import KeyframeReader

START = b"\0\0\0\1"
AVCC = bytes([1, 100, 0, 31, 0xFF])  # four bytes of length before each unit
SLICE = bytes([0x41, 0x9A])
RECOVERY_NOW = bytes([0x06, 6, 1, 0x84, 0x80])  # recovery_frame_cnt: one bit, set
RECOVERY_LATER = bytes([0x06, 6, 1, 0x24, 0x80])  # recovery_frame_cnt: 3
OTHER_SEI = bytes([0x06, 5, 3, 1, 2, 3, 0x80])
LONG_SEI = bytes([0x06, 5, 0xFF, 1]) + bytes(256) + bytes([6, 1, 0x80])


def with_lengths(*units: bytes) -> bytes:
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


@pytest.mark.parametrize(
    ("units", "is_clean"),
    [
        ((bytes([0x65, 0x88]),), True),
        ((RECOVERY_NOW, SLICE), True),
        ((OTHER_SEI, RECOVERY_NOW, SLICE), True),
        ((LONG_SEI, SLICE), True),
        ((RECOVERY_LATER, SLICE), False),
        ((SLICE,), False),
        ((b"",), False),
    ],
)
def test_h264_is_entered_at_idr_pictures_and_immediate_recovery_points(
    units: tuple[bytes, ...], is_clean: bool
) -> None:
    by_length = KeyframeReader("h264", AVCC)
    by_start_code = KeyframeReader("h264", None)
    assert by_length.is_clean_entry(with_lengths(*units)) == is_clean
    assert by_start_code.is_clean_entry(b"".join(START + unit for unit in units)) == is_clean


@pytest.mark.parametrize(("kind", "is_clean"), [(19, True), (20, True), (21, True), (16, True), (1, False)])
def test_hevc_is_entered_at_random_access_pictures(kind: int, is_clean: bool) -> None:
    unit = bytes([kind << 1, 1, 0])
    assert KeyframeReader("hevc", None).is_clean_entry(START + unit) == is_clean


@pytest.mark.parametrize(
    ("codec", "packet", "is_clean"),
    [
        ("vp8", bytes([0x10, 0]), True),
        ("vp8", bytes([0x11, 0]), False),
        ("vp9", bytes([0b10000010, 0]), True),
        ("vp9", bytes([0b10000110, 0]), False),
        ("vp9", bytes([0b10001000, 0]), False),  # shows an existing frame
        ("vp9", bytes([0b10110001, 0]), True),  # profile 3
        ("vp9", b"", False),
    ],
)
def test_vp8_and_vp9_keyframes_are_told_from_what_a_container_claims(
    codec: str, packet: bytes, is_clean: bool
) -> None:
    assert KeyframeReader(codec, None).is_clean_entry(packet) == is_clean


def test_other_codecs_are_entered_at_every_keyframe() -> None:
    assert KeyframeReader("prores", None).is_clean_entry(b"\x82")


@pytest.mark.parametrize(
    ("codec", "packet", "is_hidden"),
    [
        ("vp8", bytes([0x10, 0, 0]), False),
        ("vp8", bytes([0x00, 0, 0]), True),
        ("vp9", bytes([0b10000010, 0]), False),
        ("vp9", bytes([0b10000000, 0]), True),
        ("vp9", bytes([0b10001000, 0]), False),  # shows an existing frame
        ("vp9", bytes([0b10000000, 0, 0xC1]), False),  # a superframe
        ("h264", bytes([0, 0, 0]), False),
        ("vp8", b"", False),
    ],
)
def test_references_that_are_never_shown_are_known(codec: str, packet: bytes, is_hidden: bool) -> None:
    assert KeyframeReader(codec, None).is_hidden(packet) == is_hidden


def test_lengths_beyond_the_packet_do_no_harm() -> None:
    reader = KeyframeReader("h264", AVCC)
    assert not reader.is_clean_entry(b"\xff\xff\xff\xff\x41")
    assert not reader.is_clean_entry(b"\0\0\0\0" * 100)


DELIMITER, SLICE_UNIT = bytes([9, 0x10]), bytes([0x41, 0x9A, 1, 2])


@pytest.mark.parametrize(
    ("codec", "packet", "is_without"),
    [
        ("h264", START + DELIMITER, True),
        ("h264", START + DELIMITER + START + SLICE_UNIT, False),
        ("h264", bytes(100), False),  # damage: the container has said that a picture was here
        ("h264", b"", True),
        ("hevc", START + bytes([35 << 1, 1, 0x50]), True),
        ("hevc", START + bytes([1 << 1, 1, 0x50]), False),
        ("mpeg2video", b"\0\0\1\xb7", True),
        ("mpeg2video", b"\0\0\1\0" + bytes(20), False),
        ("mpeg2video", bytes(20), True),  # stuffing at the end of a program stream
        ("mpeg4", b"\0\0\1\xb6\x56\x5c\xbf", True),
        ("vp8", b"", True),
    ],
)
def test_packets_of_delimiters_alone_are_told_from_damage(
    codec: str, packet: bytes, *, is_without: bool
) -> None:
    assert KeyframeReader(codec, None).is_without_picture(packet, is_split=True) is is_without


def test_a_sample_that_a_container_has_bounded_holds_a_picture_whatever_became_of_it() -> None:
    for codec, packet in (("h264", START + DELIMITER), ("mpeg2video", bytes(20))):
        assert not KeyframeReader(codec, None).is_without_picture(packet, is_split=False)
    assert KeyframeReader("mpeg4", None).is_without_picture(b"\0\0\1\xb6\x56\x5c\xbf", is_split=False)


@pytest.mark.parametrize(
    ("codec", "packet", "may_need"),
    [
        ("h264", START + bytes([0x01, 0x9A, 1, 2]), True),  # nal_ref_idc 0
        ("h264", START + SLICE_UNIT, False),
        ("hevc", START + bytes([8 << 1, 1, 0x50]), True),  # RASL_N
        ("hevc", START + bytes([1 << 1, 1, 0x50]), False),
        ("mpeg2video", b"\0\0\1\0" + bytes([0, 3 << 3, 0, 0]), True),  # a B picture
        ("mpeg2video", b"\0\0\1\0" + bytes([0, 2 << 3, 0, 0]), False),
        ("mpeg4", b"\0\0\1\xb3" + bytes(4) + b"\0\0\1\xb6" + bytes([2 << 6, 0]), True),  # a B-VOP
        ("mpeg4", b"\0\0\1\xb6" + bytes([1 << 6, 0]), False),
        ("theora", b"\x40", False),
    ],
)
def test_pictures_that_may_need_what_came_before_a_keyframe(
    codec: str, packet: bytes, *, may_need: bool
) -> None:
    assert KeyframeReader(codec, None).may_need_earlier(packet) is may_need


HEVC_VPS = bytes([0x40, 1, 0x0C, 1, 0xFF, 0xFF, 1, 0x60, 0x80])


@pytest.mark.parametrize(
    ("codec", "units", "is_without"),
    [
        ("h264", (bytes([0x09, 0xF0]),), True),
        ("h264", (OTHER_SEI, bytes([0x0A])), True),
        ("h264", (bytes([0x09, 0xF0]), SLICE), False),
        ("h264", (bytes([0x49, 0x9A, 1, 2, 3, 4]),), False),  # a slice whose type a bit made a delimiter's
        ("h264", (OTHER_SEI, bytes(50)), False),
        ("h264", (OTHER_SEI + bytes(50),), False),
        ("hevc", (HEVC_VPS,), True),
        ("hevc", (bytes([0x40, 1]) + b"a slice of old",), False),
        ("hevc", (bytes([0x46, 1, 0x50]),), True),
    ],
)
def test_damaged_pictures_are_not_taken_for_messages(
    codec: str, units: tuple[bytes, ...], is_without: bool
) -> None:
    assert (
        KeyframeReader(codec, None).is_without_picture(b"".join(START + u for u in units), is_split=True)
        == is_without
    )
    if codec == "h264":
        by_length = KeyframeReader(codec, AVCC)
        assert by_length.is_without_picture(with_lengths(*units), is_split=True) == is_without
        assert not by_length.is_without_picture(with_lengths(*units) + bytes(40), is_split=True)


def test_what_is_left_of_a_damaged_picture_is_one() -> None:
    mpeg2 = KeyframeReader("mpeg2video", None)
    assert mpeg2.is_without_picture(b"\0\0\1\xb7", is_split=True)
    assert not mpeg2.is_without_picture(b"\0\0\1\xb3" + bytes(60), is_split=True)
    assert not mpeg2.is_without_picture(
        b"\0\0\1\x40abc\0\0\1\1def", is_split=True
    )  # its picture header is gone
    assert not KeyframeReader("vp8", None).is_hidden(bytes(5))
    assert not KeyframeReader("vp9", None).is_hidden(bytes(5))


def test_a_dirac_stream_ends_with_a_packet_that_shows_nothing() -> None:
    dirac = KeyframeReader("dirac", None)
    assert dirac.is_without_picture(bytes.fromhex("42424344100000000d00029137"), is_split=True)
    assert not dirac.is_without_picture(bytes.fromhex("42424344080000000d00029137"), is_split=True)


@pytest.mark.parametrize(
    ("packet", "is_without"),
    [
        (b"!\xfe\3abc\2de\0;", True),  # a comment in two blocks, and the trailer
        (b"!\xfe\0!\xfe\1a\0", True),
        (b";", True),
        (b"!\xf9\4\4\5\0\xff\0,\0\0", False),  # an image follows
        (b"!\xfe\3abc", False),  # cut
    ],
)
def test_a_gif_may_end_with_extensions_that_show_nothing(packet: bytes, *, is_without: bool) -> None:
    assert KeyframeReader("gif", None).is_without_picture(packet, is_split=False) is is_without


def test_headers_of_theora_between_joined_streams_show_nothing() -> None:
    theora = KeyframeReader("theora", None)
    assert theora.is_without_picture(b"\x80theora\3\2\1", is_split=False)
    assert not theora.is_without_picture(b"\x40\x12\x34", is_split=False)


@pytest.mark.parametrize("codec", ["mss2", "mscc", "srgc", "camtasia"])
def test_keyframes_of_screen_recorders_are_not_trusted(codec: str) -> None:
    assert not KeyframeReader(codec, None).is_clean_entry(b"\x80\x80\xc0\x07")


def test_a_packet_of_a_screen_recorder_that_changes_nothing_holds_no_picture() -> None:
    reader = KeyframeReader("camtasia", None)
    assert reader.is_without_picture(b"\0\1", is_split=False)
    assert reader.is_without_picture(bytes.fromhex("0002faa202e0030001"), is_split=False)
    assert not reader.is_without_picture(bytes.fromhex("78da636000"), is_split=False)
    assert not reader.is_without_picture(bytes(9), is_split=False)
