"""Which packets hold the second field of a frame: no frame comes from them, whatever their time stamps.

Sources: ITU-T H.264, 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header), 7.4.1.2.4 (the first unit of a
picture); ITU-T H.262, 6.2.3 (picture header), 6.2.3.1 (picture coding extension).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

from app.video.child.keyframes import SEARCHED_BYTES, NalReader

_SLICES = (1, 5)
_IDR = 5
_SEQUENCE = 7
_EXTENSION, _PICTURE_CODING = b"\0\0\1\xb5", 8
_STRUCTURE_BYTE = 6  # of the extension, from its start code on; its last two bits
_WHOLE_FRAME = 3
_HEAD_BYTES = 32  # of a slice: its header's beginning
_WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # profile_idc

_Bytes = bytes | memoryview


class _Sequence(NamedTuple):
    """What a sequence parameter set declares about fields and frame numbers."""

    may_have_fields: bool
    frame_number_bits: int
    has_colour_planes: bool
    may_leave_out_numbers: bool  # streams with temporal layers, of which some were removed


class _Field(NamedTuple):
    frame_number: int
    is_bottom: bool


class FieldReader:
    """Recognise second fields in the packets of one stream, in their order. In most codecs there are none."""

    may_see_fields = False  # whether the stream may have fields in packets of their own, as far as is known

    def is_second_field(self, packet: _Bytes, *, is_key: bool, packet_bytes: int | None = None) -> bool:
        """Whether the packet completes the frame that the previous one began, and holds nothing else.

        `packet` may be the first part of a packet of `packet_bytes`, with the headers of its first picture.
        """
        del packet, is_key, packet_bytes
        return False

    def missing_reference(self, packet: bytes) -> str | None:
        """Return evidence that a picture that others need is missing before this packet.

        Packets must come in order, after `is_second_field`.
        """
        del packet
        return None


def field_reader(codec: str, extradata: bytes | None) -> FieldReader:
    """Return the reader for a codec of FFmpeg's."""
    if codec == "h264":
        return H264FieldReader(extradata)
    return Mpeg2FieldReader() if codec == "mpeg2video" else FieldReader()


class Mpeg2FieldReader(FieldReader):
    """Pair fields as FFmpeg's decoder does: one completes the other, whatever their parity."""

    may_see_fields = True

    def __init__(self) -> None:
        self._has_first = False  # a field that waits for its second

    def is_second_field(self, packet: _Bytes, *, is_key: bool, packet_bytes: int | None = None) -> bool:
        del is_key, packet_bytes
        packet = bytes(packet)
        begins_frame = has_field = False
        at = packet.find(_EXTENSION)
        while 0 <= at < len(packet) - _STRUCTURE_BYTE:
            if packet[at + 4] >> 4 == _PICTURE_CODING:
                is_field = packet[at + _STRUCTURE_BYTE] & 3 != _WHOLE_FRAME
                has_field |= is_field
                begins_frame |= not (is_field and self._has_first)
                self._has_first = is_field and not self._has_first
                if not is_field:
                    break  # after a frame, the packet holds no other picture
            at = packet.find(_EXTENSION, at + 4)
        return has_field and not begins_frame


class H264FieldReader(FieldReader):
    def __init__(self, extradata: bytes | None) -> None:
        self._nals = NalReader("h264", extradata)
        self._sequence: _Sequence | None = None
        self._first: _Field | None = None  # of the previous packet, if it held only one field
        self._reference_number: int | None = None  # frame_num of the last picture that others need
        if extradata and extradata[0] != 1:
            self._note_sequence(self._nals.units(extradata))
        elif extradata and len(extradata) > 8:
            length = int.from_bytes(extradata[6:8], "big")  # of the first set, after five numbers and a count
            self._note_sequence([extradata[8 : 8 + length]])

    def is_second_field(self, packet: _Bytes, *, is_key: bool, packet_bytes: int | None = None) -> bool:
        if not (is_key or self.may_see_fields):
            return False  # without a copy of the packet
        length, packet = packet_bytes or len(packet), bytes(packet[:SEARCHED_BYTES])
        if is_key:
            self._note_sequence(self._nals.units(packet, length))
        sequence = self._sequence
        if sequence is None or not sequence.may_have_fields:
            return False
        fields: set[_Field] = set()
        for unit in self._nals.units(packet, length):
            if unit and unit[0] & 31 in _SLICES:
                bits = _Bits(unit[1:_HEAD_BYTES])
                with contextlib.suppress(EOFError):
                    number = _read_frame_number(bits, sequence)
                    if bits.number(1):
                        fields.add(_Field(number, bool(bits.number(1))))
        first, self._first = self._first, None
        if len(fields) != 1:
            return False  # a frame, or both of its fields
        (field,) = fields
        if first == _Field(field.frame_number, not field.is_bottom):
            return True
        self._first = field
        return False

    def missing_reference(self, packet: bytes) -> str | None:
        # Every picture that others need counts frame_num up by one (7.4.3).
        units = self._nals.units(packet[:SEARCHED_BYTES], len(packet))
        unit = next((unit for unit in units if unit and unit[0] & 31 in _SLICES), None)
        if unit is None or self._sequence is None or self._sequence.may_leave_out_numbers:
            return None
        try:
            number = _read_frame_number(_Bits(unit[1:_HEAD_BYTES]), self._sequence)
        except EOFError:
            return None
        before, is_needed = self._reference_number, bool(unit[0] >> 5 & 3)
        if is_needed or unit[0] & 31 == _IDR:
            self._reference_number = number
        next_number = None if before is None else (before + 1) % (1 << self._sequence.frame_number_bits)
        # Numbers also start again at 0 after an operation that forgets all references: it is not read here.
        if before is None or number in (before, next_number, 0, 1):
            return None
        return f"pictures are missing: their numbers jump from {before} to {number}"

    def _note_sequence(self, units: Iterable[bytes]) -> None:
        for unit in units:
            if unit and unit[0] & 31 == _SEQUENCE:
                try:
                    self._sequence = _read_sequence(_Bits(unit[1:]))
                except EOFError:
                    continue
                self.may_see_fields = self._sequence.may_have_fields
                return


class _Bits:
    """Read bits of a NAL unit without its emulation prevention bytes. Raises EOFError at the end."""

    def __init__(self, unit: bytes) -> None:
        payload = unit.replace(b"\0\0\3", b"\0\0")
        self._bits = "".join(format(byte, "08b") for byte in payload)
        self._at = 0

    def number(self, width: int) -> int:
        end = self._at + width
        if end > len(self._bits):
            raise EOFError
        value = int(self._bits[self._at : end] or "0", 2)
        self._at = end
        return value

    def golomb(self) -> int:
        """Read ue(v) of 9.1; se(v) has the same length."""
        one = self._bits.find("1", self._at)
        if one < 0 or one - self._at > 32:
            raise EOFError
        zeros = one - self._at
        self._at = one
        return self.number(zeros + 1) - 1

    def skip_scaling_list(self, entries: int) -> None:
        """Skip a list of 7.3.2.1.1.1, which ends early where the rest repeats its last entry."""
        last = following = 8
        for _ in range(entries):
            if following:
                value = self.golomb()
                step = (value + 1) // 2 if value % 2 else -(value // 2)  # se(v)
                following = (last + step) % 256
            last = following or last

    def skip_golombs(self, count: int) -> None:
        for _ in range(count):
            self.golomb()


def _read_sequence(bits: _Bits) -> _Sequence:
    profile = bits.number(8)
    bits.number(16)
    bits.golomb()
    has_colour_planes = False
    if profile in _WITH_CHROMA_FORMAT:
        chroma_format = bits.golomb()
        has_colour_planes = chroma_format == 3 and bool(bits.number(1))
        bits.skip_golombs(2)
        bits.number(1)
        if bits.number(1):
            for number in range(12 if chroma_format == 3 else 8):
                if bits.number(1):
                    bits.skip_scaling_list(16 if number < 6 else 64)
    frame_number_bits = bits.golomb() + 4
    order_type = bits.golomb()
    if order_type == 0:
        bits.golomb()
    elif order_type == 1:
        bits.number(1)
        bits.skip_golombs(2)
        bits.skip_golombs(min(bits.golomb(), 255))
    bits.golomb()
    may_leave_out_numbers = bool(bits.number(1))
    bits.skip_golombs(2)
    is_frames_only = bool(bits.number(1))
    return _Sequence(not is_frames_only, frame_number_bits, has_colour_planes, may_leave_out_numbers)


def _read_frame_number(bits: _Bits, sequence: _Sequence) -> int:
    bits.skip_golombs(3)
    if sequence.has_colour_planes:
        bits.number(2)
    return bits.number(sequence.frame_number_bits)
