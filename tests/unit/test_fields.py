"""Second fields are told by the headers of slices (H.264) and of pictures (MPEG-2)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.video.child.fields import H264FieldReader, Mpeg2FieldReader

START = b"\0\0\0\1"
# Main profile, not frames only, frame_num of 8 bits; then slices of it: first macroblock 0, type I, set 0.
INTERLACED = START + bytes([0x67, 77, 0, 30, 0b10010110, 0b11010010, 0b11001000])
PROGRESSIVE = START + bytes([0x67, 77, 0, 30, 0b10010110, 0b11010010, 0b11110000])


def a_slice(frame_number: int, fields: str) -> bytes:
    """`fields`: field_pic_flag and, if it is set, bottom_field_flag."""
    bits = "1" + "0001000" + "1" + format(frame_number, "08b") + fields
    bits += "1" * (-len(bits) % 8) + "1" * 64
    return START + b"\x41" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def second_fields(parameters: bytes, *packets: bytes) -> list[bool]:
    reader = H264FieldReader(parameters)
    return [reader.is_second_field(packet, is_key=False) for packet in packets]


TOP, BOTTOM, FRAME = "10", "11", "0"


def test_the_other_field_of_the_same_frame_is_the_second() -> None:
    packets = [a_slice(number, parity) for number in range(3) for parity in (TOP, BOTTOM)]
    assert second_fields(INTERLACED, *packets) == [False, True] * 3


def test_a_field_alone_a_frame_and_both_fields_in_one_packet_are_none() -> None:
    packets = [a_slice(0, TOP), a_slice(1, TOP), a_slice(2, FRAME), a_slice(2, BOTTOM)]
    assert second_fields(INTERLACED, *packets) == [False] * 4
    both = a_slice(3, TOP) + a_slice(3, BOTTOM)
    assert second_fields(INTERLACED, both, both) == [False, False]


def test_a_stream_of_frames_only_is_not_looked_at() -> None:
    assert second_fields(PROGRESSIVE, a_slice(0, TOP), a_slice(0, BOTTOM)) == [False, False]


def mpeg2_picture(structure: int) -> bytes:
    header, extension = b"\0\0\1\0\0\x0f\xff\xf8", bytes([0x8F, 0xFF, 0xF0 | structure, 0, 0])
    return header + b"\0\0\1\xb5" + extension + b"\0\0\1\1" + bytes(range(2, 90))


def mpeg2_second_fields(*packets: bytes) -> list[bool]:
    reader = Mpeg2FieldReader()
    return [reader.is_second_field(packet, is_key=False) for packet in packets]


def test_every_other_field_of_mpeg2_is_a_second_one() -> None:
    top, bottom, frame = map(mpeg2_picture, (1, 2, 3))
    sequence = b"\0\0\1\xb3" + bytes(8) + b"\0\0\1\xb5" + bytes([0x14, 0x8A]) + bytes(4)
    assert mpeg2_second_fields(sequence + top, bottom, bottom, top) == [False, True, False, True]
    assert mpeg2_second_fields(frame, top, bottom, frame, frame) == [False, False, True, False, False]
    assert mpeg2_second_fields(top + bottom, top + bottom, top, bottom) == [False, False, False, True]
    assert mpeg2_second_fields(top, frame, top, bottom) == [False, False, False, True]
    assert mpeg2_second_fields(top, b"", b"\0\0\1\xb5", bottom) == [False, False, False, True]


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_are_read(parameters: bytes, packet: bytes) -> None:
    for start in (b"", START, START + b"\x67", b"\1"):
        reader = H264FieldReader(start + parameters)
        whole = start + b"\x67" + parameters + START + b"\x41" + packet
        reader.is_second_field(whole, is_key=True)
    mpeg2_second_fields(packet, mpeg2_picture(1)[: len(parameters)] + packet, b"\0\0\1\xb5" + packet)


def missing(*numbers: int, parameters: bytes = PROGRESSIVE) -> list[bool]:
    """Whether a picture is missing before each of those, by their frame_num; all are references."""
    reader = H264FieldReader(parameters)
    return [reader.missing_reference(a_slice(number, FRAME)) is not None for number in numbers]


def test_reference_pictures_that_are_missing_are_told_by_their_numbers() -> None:
    assert missing(5, 6, 7, 255, 0, 1) == [False, False, False, True, False, False]
    assert missing(254, 255, 0, 1, 3) == [False, False, False, False, True]


def test_pictures_that_no_other_needs_do_not_count_on() -> None:
    reader = H264FieldReader(PROGRESSIVE)
    unneeded = a_slice(6, FRAME).replace(b"\x41", b"\x01", 1)
    packets = [a_slice(5, FRAME), unneeded, unneeded, a_slice(6, FRAME), a_slice(8, FRAME)]
    assert [bool(reader.missing_reference(packet)) for packet in packets] == [False] * 4 + [True]
    assert (
        reader.missing_reference(a_slice(20, FRAME))
        == "pictures are missing: their numbers jump from 8 to 20"
    )
