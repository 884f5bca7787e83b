"""An H.264 stream of field pictures, which no encoder at hand writes: two coded pictures make one frame.

Every macroblock is sent as plain samples (I_PCM). Source: ITU-T H.264, 7.3.2.1 (parameter sets), 7.3.3
(slice header), 7.3.5 (macroblocks).
"""

from __future__ import annotations

WIDTH, HEIGHT = 32, 32
_MACROBLOCKS_A_FIELD = (WIDTH // 16) * (HEIGHT // 32)
_I_PCM = 25
_I_SLICE = 7


class Bits:
    """Collects bits, most significant first."""

    def __init__(self) -> None:
        self._bits: list[str] = []

    def number(self, value: int, width: int) -> None:
        self._bits.append(format(value, f"0{width}b"))

    def golomb(self, value: int) -> None:
        """ue(v) of 9.1."""
        digits = format(value + 1, "b")
        self._bits.append("0" * (len(digits) - 1) + digits)

    def code(self, digits: str) -> None:
        self._bits.append(digits)

    def align(self) -> None:
        self._bits.append("0" * (-len("".join(self._bits)) % 8))

    def samples(self, data: bytes) -> None:
        self._bits.append("".join(format(byte, "08b") for byte in data))

    def content(self) -> bytes:
        text = "".join(self._bits)
        return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))

    def unit(self, kind: int) -> bytes:
        """The NAL unit with a start code, its end marked and its zeros kept apart (7.4.1)."""
        self._bits.append("1")
        self.align()
        escaped = bytearray()
        for byte in self.content():
            if byte <= 3 and escaped[-2:] == b"\0\0":
                escaped.append(3)
            escaped.append(byte)
        return b"\0\0\0\1" + bytes([0x60 | kind]) + bytes(escaped)


def _parameter_sets() -> bytes:
    sequence = Bits()
    sequence.number(77, 8)  # main profile
    sequence.number(0, 8)
    sequence.number(30, 8)  # level 3
    # id, log2_max_frame_num - 4, pic_order_cnt_type, log2_max_pic_order_cnt_lsb - 4, reference frames
    for value in (0, 4, 0, 4, 1):
        sequence.golomb(value)
    sequence.number(0, 1)  # no gaps in frame_num
    sequence.golomb(WIDTH // 16 - 1)
    sequence.golomb(HEIGHT // 32 - 1)
    for flag in (0, 0, 1, 0, 0):  # not frames only, no macroblock pairs, direct inference, no crop, no VUI
        sequence.number(flag, 1)
    picture = Bits()
    for value in (0, 0):
        picture.golomb(value)
    picture.number(0, 2)  # CAVLC; no order of fields in a picture
    for value in (0, 0, 0):  # slice groups, references
        picture.golomb(value)
    picture.number(0, 3)  # no weights
    for _ in range(3):  # quantisers, as differences
        picture.golomb(0)
    picture.number(0, 3)
    return sequence.unit(7) + picture.unit(8)


def _picture(frame: int, *, is_bottom: bool | None, luma: int) -> bytes:
    """A field, or a frame where `is_bottom` is None."""
    is_idr = frame == 0 and not is_bottom
    bits = Bits()
    for value in (0, _I_SLICE, 0):  # first macroblock, type, parameter set
        bits.golomb(value)
    bits.number(frame % 256, 8)
    bits.number(is_bottom is not None, 1)
    if is_bottom is not None:
        bits.number(is_bottom, 1)
    if is_idr:
        bits.golomb(0)
    bits.number((2 * frame + bool(is_bottom)) % 256, 8)
    if is_idr:
        bits.number(0, 2)
    else:
        bits.number(0, 1)
    bits.golomb(0)  # quantiser
    for _ in range(_MACROBLOCKS_A_FIELD * (2 if is_bottom is None else 1)):
        bits.golomb(_I_PCM)
        bits.align()
        bits.samples(bytes([luma]) * 256 + bytes([128]) * 128)
    return bits.unit(5 if is_idr else 1)


def coded_fields(frames: int) -> list[bytes]:
    """2 × `frames` access units, top and bottom by turns; the luma of frame n is 20 + 3 n, and 1 more."""
    fields = []
    for frame in range(frames):
        luma = 20 + 3 * frame
        fields.append(_picture(frame, is_bottom=False, luma=luma))
        fields.append(_picture(frame, is_bottom=True, luma=luma + 1))
    fields[0] = _parameter_sets() + fields[0]
    return fields


def coded_frames(frames: int) -> list[bytes]:
    """`frames` access units that are one picture each, as may come before fields in the same stream."""
    units = [_picture(frame, is_bottom=None, luma=20 + 3 * frame) for frame in range(frames)]
    units[0] = _parameter_sets() + units[0]
    return units
