"""An H.264 stream of field pictures, which no encoder at hand writes: two coded pictures make one frame.

Every macroblock is sent as plain samples (I_PCM). Source: ITU-T H.264, 7.3.2.1 (parameter sets), 7.3.3
(slice header), 7.3.5 (macroblocks).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

WIDTH, HEIGHT = 32, 32
_MACROBLOCKS_A_FIELD = (WIDTH // 16) * (HEIGHT // 32)
_I_PCM = 25
_I_SLICE = 7
_REFERENCE, _NO_REFERENCE = 3, 0  # nal_ref_idc
ANCHOR_STEP = 3  # of the streams with B fields: two frames lie between anchors
_ENTRY_STEP = 12  # frames from one entry of such a stream to the next


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

    def unit(self, kind: int, *, reference: int = _REFERENCE) -> bytes:
        """The NAL unit with a start code, its end marked and its zeros kept apart (7.4.1)."""
        self._bits.append("1")
        self.align()
        escaped = bytearray()
        for byte in self.content():
            if byte <= 3 and escaped[-2:] == b"\0\0":
                escaped.append(3)
            escaped.append(byte)
        return b"\0\0\0\1" + bytes([reference << 5 | kind]) + bytes(escaped)


def _parameter_sets(*, reordered_frames: int = 0) -> bytes:
    sequence = Bits()
    sequence.number(77, 8)  # main profile
    sequence.number(0, 8)
    sequence.number(30, 8)  # level 3
    # id, log2_max_frame_num - 4, pic_order_cnt_type, log2_max_pic_order_cnt_lsb - 4, reference frames
    for value in (0, 4, 0, 4, 1 + reordered_frames):
        sequence.golomb(value)
    sequence.number(0, 1)  # no gaps in frame_num
    sequence.golomb(WIDTH // 16 - 1)
    sequence.golomb(HEIGHT // 32 - 1)
    for flag in (0, 0, 1, 0):  # not frames only, no macroblock pairs, direct inference, no crop
        sequence.number(flag, 1)
    sequence.number(reordered_frames > 0, 1)
    if reordered_frames:
        _usability(sequence, reordered_frames)
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


def _usability(sequence: Bits, reordered_frames: int) -> None:
    """VUI (E.1.1) that says how many frames come before others that are shown earlier, and no more."""
    sequence.number(0, 8)  # shape, overscan, signal, chroma's place, timing, both kinds of HRD, structure
    sequence.number(0b11, 2)  # restrictions follow; vectors may point outside
    for value in (0, 0, 0, 0, reordered_frames, reordered_frames + 1):
        sequence.golomb(value)


def _entry_point() -> bytes:
    """A recovery point here (D.1.8): decoding can enter, and what is shown from here on is whole."""
    message = Bits()
    message.number(6, 8)
    message.number(1, 8)
    message.number(0b11000100, 8)  # no frames to wait for, exact, the link unbroken, the end marked
    return message.unit(6, reference=_NO_REFERENCE)


def _picture(
    frame: int,
    *,
    is_bottom: bool | None,
    luma: int,
    frame_number: int | None = None,
    is_reference: bool = True,
) -> bytes:
    """A field, or a frame where `is_bottom` is None, of the frame shown at the place `frame`."""
    is_idr = frame == 0 and not is_bottom
    bits = Bits()
    for value in (0, _I_SLICE, 0):  # first macroblock, type, parameter set
        bits.golomb(value)
    bits.number((frame if frame_number is None else frame_number) % 256, 8)
    bits.number(is_bottom is not None, 1)
    if is_bottom is not None:
        bits.number(is_bottom, 1)
    if is_idr:
        bits.golomb(0)
    bits.number((2 * frame + bool(is_bottom)) % 256, 8)
    if is_idr:
        bits.number(0, 2)
    elif is_reference:
        bits.number(0, 1)
    bits.golomb(0)  # quantiser
    for _ in range(_MACROBLOCKS_A_FIELD * (2 if is_bottom is None else 1)):
        bits.golomb(_I_PCM)
        bits.align()
        bits.samples(bytes([luma]) * 256 + bytes([128]) * 128)
    return bits.unit(5 if is_idr else 1, reference=_REFERENCE if is_reference else _NO_REFERENCE)


def coded_fields(frames: int) -> list[bytes]:
    """2 × `frames` access units, top and bottom by turns; the luma of frame n is 20 + 3 n, and 1 more."""
    fields = []
    for frame in range(frames):
        luma = 20 + 3 * frame
        fields.append(_picture(frame, is_bottom=False, luma=luma))
        fields.append(_picture(frame, is_bottom=True, luma=luma + 1))
    fields[0] = _parameter_sets() + fields[0]
    return fields


class CodedField(NamedTuple):
    """A field picture in its place in the stream."""

    data: bytes
    frame: int  # whose half it is, counted as shown
    is_entry: bool


def coded_b_fields(frames: int) -> list[CodedField]:
    """2 × `frames` field pictures; the pairs between two anchors are no references, and come after both.

    Luma as in `coded_fields`. The pairs that lead an entry are shown before it and need what came before.
    """
    fields = []
    anchors = 0
    for frame in coded_order(frames):
        is_anchor = frame % ANCHOR_STEP == 0
        is_entry = frame % _ENTRY_STEP == 0
        for is_bottom in (False, True):
            picture = _picture(
                frame,
                is_bottom=is_bottom,
                luma=20 + 3 * frame + is_bottom,
                frame_number=anchors,
                is_reference=is_anchor,
            )
            if is_entry and not is_bottom:
                picture = _parameter_sets(reordered_frames=1) + (_entry_point() if frame else b"") + picture
            fields.append(CodedField(picture, frame, is_entry and not is_bottom))
        anchors += is_anchor
    return fields


def coded_order(frames: int) -> Iterator[int]:
    """0, 3, 1, 2, 6, 4, 5 and so on; what is left at the end comes as it is shown."""
    yield 0
    last = (frames - 1) // ANCHOR_STEP * ANCHOR_STEP
    for anchor in range(ANCHOR_STEP, last + 1, ANCHOR_STEP):
        yield from (anchor, *range(anchor - ANCHOR_STEP + 1, anchor))
    yield from range(last + 1, frames)


def coded_frames(frames: int) -> list[bytes]:
    """`frames` access units that are one picture each, as may come before fields in the same stream."""
    units = [_picture(frame, is_bottom=None, luma=20 + 3 * frame) for frame in range(frames)]
    units[0] = _parameter_sets() + units[0]
    return units
