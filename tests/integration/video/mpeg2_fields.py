"""An MPEG-2 stream of field pictures, which no encoder at hand writes: two coded pictures make one frame.

Every macroblock is intra-coded and flat. Source: ITU-T H.262, 6.2 (syntax), B.2, B.5 and B.14 (codes).
"""

from __future__ import annotations

from field_pictures import ANCHOR_STEP, HEIGHT, WIDTH, Bits, CodedField, coded_order

_MACROBLOCKS_A_ROW = WIDTH // 16
_ROWS_A_FIELD = HEIGHT // 32
_LUMA_SIZES = ("100", "00", "01", "101", "110", "1110", "11110", "111110", "1111110")
_NO_DIFFERENCE = {True: "100", False: "00"}  # of a block's mean from the one before, by whether it is luma
_END_OF_BLOCK = "10"
_I, _P, _B = 1, 2, 3  # the picture's coding type
_INTRA_MACROBLOCK = {_I: "1", _P: "00011", _B: "00011"}


def _unit(code: int, bits: Bits) -> bytes:
    bits.align()
    return b"\0\0\1" + bytes([code]) + bits.content()


def _numbers(*pairs: tuple[int, int]) -> Bits:
    """Values, each with its width in bits."""
    bits = Bits()
    for value, width in pairs:
        bits.number(value, width)
    return bits


def _sequence() -> bytes:
    # 25 frames a second, square pixels, no bound on the rate to speak of
    header = _numbers((WIDTH, 12), (HEIGHT, 12), (1, 4), (3, 4), (10_000, 18), (1, 1), (20, 10), (0, 3))
    # Main profile at main level, interlaced, 4:2:0
    extension = _numbers((1, 4), (0x48, 8), (0, 1), (1, 2), (0, 16), (1, 1), (0, 8), (0, 8))
    return _unit(0xB3, header) + _unit(0xB5, extension)


def _group() -> bytes:
    return _unit(0xB8, _numbers((0, 12), (1, 1), (0, 12), (1, 1), (0, 1)))  # time code, closed


def _field(place: int, *, coding_type: int, is_bottom: bool, luma: int) -> bytes:
    head = _numbers((place, 10), (coding_type, 3), (0xFFFF, 16))
    for _ in range(coding_type - 1):  # the directions that vectors may have
        head.number(0b0111, 4)  # of MPEG-1 alone
    head.number(0, 1)
    forward = 15 if coding_type == _I else 1
    backward = 1 if coding_type == _B else 15
    extension = _numbers((8, 4), (forward, 4), (forward, 4), (backward, 4), (backward, 4), (0, 2))
    extension.number(2 if is_bottom else 1, 2)
    extension.number(0, 10)
    slices = (_unit(row + 1, _slice(coding_type, luma)) for row in range(_ROWS_A_FIELD))
    return _unit(0, head) + _unit(0xB5, extension) + b"".join(slices)


def _slice(coding_type: int, luma: int) -> Bits:
    bits = _numbers((1, 5), (0, 1))
    difference = luma - 128
    for _ in range(_MACROBLOCKS_A_ROW):
        bits.code("1" + _INTRA_MACROBLOCK[coding_type])
        for block in range(6):
            if block or not difference:
                bits.code(_NO_DIFFERENCE[block < 4])
            else:
                size = abs(difference).bit_length()
                bits.code(_LUMA_SIZES[size])
                bits.number(difference if difference > 0 else difference + (1 << size) - 1, size)
                difference = 0
            bits.code(_END_OF_BLOCK)
    return bits


def coded_fields(frames: int, *, group: int, is_intra_only: bool) -> list[bytes]:
    """2 × `frames` pictures, top and bottom by turns; the luma of frame n is 20 + 3 n, and 1 more.

    Groups are of `group` frames. Their first field is an I picture; the others are P unless all are I.
    """
    fields = []
    for frame in range(frames):
        place = frame % group
        for is_bottom in (False, True):
            is_first = place == 0 and not is_bottom
            coding_type = _I if is_first or is_intra_only else _P
            picture = _field(
                place, coding_type=coding_type, is_bottom=is_bottom, luma=20 + 3 * frame + is_bottom
            )
            fields.append(_sequence() + _group() + picture if is_first else picture)
    return fields


def coded_b_fields(frames: int, *, group: int) -> list[CodedField]:
    """2 × `frames` pictures in groups of `group` frames; luma as in `coded_fields`.

    A group begins with an I frame; each P frame comes before the two B frames that are shown before it.
    """
    fields = []
    for start in range(0, frames, group):
        size = min(group, frames - start)
        for place in coded_order(size):
            is_reference = place % ANCHOR_STEP == 0 or place > (size - 1) // ANCHOR_STEP * ANCHOR_STEP
            for is_bottom in (False, True):
                is_first = place == 0 and not is_bottom
                picture = _field(
                    place,
                    coding_type=_I if is_first else _P if is_reference else _B,
                    is_bottom=is_bottom,
                    luma=20 + 3 * (start + place) + is_bottom,
                )
                data = _sequence() + _group() + picture if is_first else picture
                fields.append(CodedField(data, start + place, is_first))
    return fields
