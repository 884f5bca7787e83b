"""What a packet's first bytes show about decoding: where it can start, and which frames are never shown.

A keyframe flag does not prove that decoding can start there: H.264 streams that refresh parts of the picture
over time carry it too, and their next frames still need earlier ones. Sources: ITU-T H.264 7.3.1, 7.3.2.3.1,
D.1.8; ITU-T H.265 7.4.2.2; RFC 6386 9.1; the VP9 bitstream specification 6.2 and annex B; ISO/IEC 14496-2
6.2.5 (MPEG-4); GIF89a, 22 to 27; the Theora specification 6.1.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from av.codec import Codec
from av.codec.codec import UnknownCodecError

# Codecs whose keyframe flags can be trusted, besides those that have only keyframes. The flags of others
# (games, screen recorders) are wrong too often: such videos are decoded from the beginning.
_RIGHTLY_FLAGGED = frozenset(
    name
    for line in (
        "h264 hevc vvc vp8 vp9 libdav1d mpeg1video mpeg2video mpeg4 flv vc1",
        "msmpeg4 msmpeg4v1 msmpeg4v2 wmv1 wmv2 wmv3 ffv1 theora vp6 vp6f vp6a rv30 rv40 svq3 cinepak",
        "png cfhd",
    )
    for name in line.split()
)
_WRONGLY_SAID_TO_HAVE_KEYFRAMES_ONLY = frozenset(("mss2", "mscc", "srgc"))  # by FFmpeg's descriptors
_H264_IDR, _H264_SEI = 5, 6
_H264_SLICES = (1, 2, 5)
_H264_MESSAGES = (6, 12)  # SEI, filler
_H264_PARAMETERS, _H264_DELIMITER, _H264_ENDS = (7, 8), 9, (10, 11)
_HEVC_MESSAGES = range(38, 41)
_HEVC_PARAMETERS, _HEVC_VPS, _HEVC_DELIMITER, _HEVC_ENDS = (32, 33, 34), 32, 35, (36, 37)
_MOST_PARAMETER_BYTES = 1024
_MOST_TRAILING_ZEROS = 8  # more stand in place of data
_HEVC_SKIPPED_LEADING = (8, 9)  # RASL_N, RASL_R: without what came before the keyframe they are not shown
_MPEG2_PICTURE = b"\0\0\1\0"
_MPEG2_PICTURE_OR_SLICE = re.compile(rb"\x00\x00\x01[\x00-\xaf]")
_MPEG2_B = 3
_MOST_SKIP_BYTES = 16
_DIRAC_END, _DIRAC_END_BYTES = b"BBCD\x10", 13
_VP8_KEY_CODE = b"\x9d"  # the first of three bytes
_VP9_MARKER = 2
_LEAST_VOP_BYTES = 9  # MPEG-4: less is a placeholder for a picture that is packed with another, or left out
_MPEG4_PICTURE, _MPEG4_B = b"\0\0\1\xb6", 2
_GIF_EXTENSION, _GIF_TRAILER = b"!", b";"
_THEORA_HEADER = re.compile(rb"[\x80-\xff]theora")
_SEI_RECOVERY_POINT = 6
_HEVC_IRAP = range(16, 24)
HEAD_BYTES = 4096  # of a packet: mostly enough to know what it is
SEARCHED_BYTES = 256 * 1024  # of a keyframe's packet; the slices of its picture come after all that matters


class NalReader:
    """Split packets of one H.264 or HEVC stream into NAL units, whichever way the container packs them."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._length_bytes = 0  # 0: start codes
        if extradata and extradata[0] == 1:
            at = 4 if codec == "h264" else 21
            if len(extradata) > at:
                self._length_bytes = (extradata[at] & 3) + 1

    def units(self, data: bytes, packet_bytes: int | None = None) -> Iterator[bytes]:
        """Yield the units that begin in `data`: a packet, or the first bytes of one of `packet_bytes`."""
        length_bytes, packet_bytes = self._length_bytes, packet_bytes or len(data)
        if length_bytes:
            at = 0
            while at + length_bytes < len(data):
                start = at + length_bytes
                at = start + int.from_bytes(data[at:start], "big")
                if at > packet_bytes:
                    return  # damage: FFmpeg does not read such a unit either
                yield data[start:at]
            return
        start = data.find(b"\0\0\1")
        while start >= 0:
            end = data.find(b"\0\0\1", start + 3)
            yield data[start + 3 : end if end >= 0 else len(data)]
            start = end

    def is_whole(self, packet: bytes) -> bool:
        """Whether units fill the whole packet, as they do where nothing is damaged."""
        if not self._length_bytes:
            start = packet.find(b"\0\0\1")
            return start >= 0 and not any(packet[:start])
        return sum(self._length_bytes + len(unit) for unit in self.units(packet)) == len(packet)


class KeyframeReader:
    """Judge the packets of one stream by their bytes."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._codec = codec
        self._is_rightly_flagged = codec in _RIGHTLY_FLAGGED
        if not self._is_rightly_flagged and codec not in _WRONGLY_SAID_TO_HAVE_KEYFRAMES_ONLY:
            with contextlib.suppress(UnknownCodecError):
                self._is_rightly_flagged = Codec(codec, "r").intra_only
        self._nals = NalReader(codec, extradata)

    def is_clean_entry(self, packet: bytes, packet_bytes: int | None = None) -> bool:
        """Whether every frame shown after this keyframe decodes without earlier packets.

        `packet` may be the first part of a packet of `packet_bytes`.
        """
        if self._codec == "h264":
            return any(_is_h264_entry(unit) for unit in self._nals.units(packet, packet_bytes))
        if self._codec == "hevc":
            units = self._nals.units(packet, packet_bytes)
            return any((unit[0] >> 1) & 63 in _HEVC_IRAP for unit in units if unit)
        if self._codec == "vp8":
            return bool(packet) and not packet[0] & 1
        if self._codec == "vp9":
            return bool(packet) and _vp9_frame(packet).is_key
        return self._is_rightly_flagged

    def is_any_entry(self, packet: bytes, packet_bytes: int) -> bool:
        """Whether FFmpeg treats a packet that the container flags as a keyframe as one, clean or not."""
        if self._codec == "h264":
            units = self._nals.units(packet, packet_bytes)
            return any(_is_h264_entry(unit) or _h264_recovery(unit) is not None for unit in units)
        return self.is_clean_entry(packet, packet_bytes)

    def is_never_shown(self, packet: bytes | memoryview, *, is_split: bool) -> bool:
        """Whether no frame of the packet is ever shown. `is_split` as for `is_without_picture`."""
        is_empty = len(packet) <= HEAD_BYTES and self.is_without_picture(bytes(packet), is_split=is_split)
        return is_empty or self.is_hidden(bytes(packet[:4]) + bytes(packet[-1:]))

    def is_without_picture(self, packet: bytes, *, is_split: bool) -> bool:
        """Whether the packet holds only delimiters, messages or stuffing, as at the end of a stream.

        `is_split`: FFmpeg has found the packet in the stream. A packet that the container bounds holds a
        picture, even if it is damaged, except for what a few codecs have besides pictures.
        """
        if not packet:
            return True
        if self._codec in _KNOWN_WITHOUT_PICTURE:
            return _KNOWN_WITHOUT_PICTURE[self._codec](packet)
        if not is_split:
            return False
        if self._codec in ("h264", "hevc"):
            return self._nals.is_whole(packet) and all(map(self._is_message, self._nals.units(packet)))
        if self._codec not in ("mpeg1video", "mpeg2video"):
            return False
        is_filled = len(packet) - len(packet.rstrip(b"\0")) <= _MOST_TRAILING_ZEROS
        is_headers = packet[:3] == b"\0\0\1" and is_filled and not _MPEG2_PICTURE_OR_SLICE.search(packet)
        return is_headers or not any(packet)

    def may_need_earlier(self, packet: bytes) -> bool:
        """Whether the picture may need packets from before the keyframe that it follows: decoders drop it.

        Also true of pictures that need nothing, if no other needs them: ask it only of a stream's first ones.
        """
        if self._codec == "h264":
            slices = [unit for unit in self._nals.units(packet) if unit and unit[0] & 31 in _H264_SLICES]
            return bool(slices) and not slices[0][0] >> 5 & 3
        if self._codec == "hevc":
            types = [(unit[0] >> 1) & 63 for unit in self._nals.units(packet) if unit]
            return any(kind in _HEVC_SKIPPED_LEADING for kind in types)
        if self._codec in ("mpeg1video", "mpeg2video"):
            at = packet.find(_MPEG2_PICTURE)
            return 0 <= at < len(packet) - 5 and packet[at + 5] >> 3 & 7 == _MPEG2_B
        if self._codec == "mpeg4":
            at = packet.find(_MPEG4_PICTURE)
            return 0 <= at < len(packet) - 4 and packet[at + 4] >> 6 == _MPEG4_B
        return False

    def _is_message(self, unit: bytes) -> bool:
        """Whether the unit is neither a slice nor what damage may have made of one."""
        if not unit:
            return False
        is_h264 = self._codec == "h264"
        kind = unit[0] & 31 if is_h264 else (unit[0] >> 1) & 63
        body = unit.rstrip(b"\0")[1 if is_h264 else 2 :]
        if len(unit) - len(unit.rstrip(b"\0")) > _MOST_TRAILING_ZEROS:
            return False
        if kind in (_H264_ENDS if is_h264 else _HEVC_ENDS):
            return not body
        if kind == (_H264_DELIMITER if is_h264 else _HEVC_DELIMITER):
            return len(body) <= 1
        if kind in (_H264_PARAMETERS if is_h264 else _HEVC_PARAMETERS):
            is_vps = not is_h264 and kind == _HEVC_VPS
            return len(body) <= _MOST_PARAMETER_BYTES and (not is_vps or body[2:4] == b"\xff\xff")
        return kind in (_H264_MESSAGES if is_h264 else _HEVC_MESSAGES)

    def is_hidden(self, packet: bytes) -> bool:
        """Whether the packet holds only a reference for later frames, which is not shown."""
        if not packet:
            return False
        if self._codec == "vp8":
            is_damaged = not packet[0] & 1 and packet[3:4] not in (b"", _VP8_KEY_CODE)
            return not is_damaged and not packet[0] >> 4 & 1
        if self._codec == "vp9":
            if packet[0] >> 6 != _VP9_MARKER:
                return False
            is_superframe = packet[-1] & 0xE0 == 0xC0  # which ends with a frame that is shown
            return not is_superframe and not _vp9_frame(packet).is_shown
        return False


def _is_gif_ending(packet: bytes) -> bool:
    """Whether the packet holds only what may follow the last image: extensions and the trailer."""
    at = 0
    while packet[at : at + 1] == _GIF_EXTENSION:
        at += 2  # with its label
        while (block_bytes := packet[at] if at < len(packet) else 0) > 0:
            at += 1 + block_bytes
        at += 1
    return at == len(packet) or packet[at:] == _GIF_TRAILER


_KNOWN_WITHOUT_PICTURE: dict[str, Callable[[bytes], bool]] = {
    "mpeg4": lambda packet: len(packet) < _LEAST_VOP_BYTES,
    "dirac": lambda packet: len(packet) == _DIRAC_END_BYTES and packet[:5] == _DIRAC_END,
    "gif": _is_gif_ending,
    # Nothing has changed: run lengths that skip all, without the zlib around them.
    "camtasia": lambda packet: len(packet) <= _MOST_SKIP_BYTES and packet[:1] + packet[-2:] == b"\0\0\1",
    "theora": lambda packet: bool(_THEORA_HEADER.match(packet)),  # of a stream that follows another
}


def _is_h264_entry(unit: bytes) -> bool:
    return bool(unit) and (unit[0] & 31 == _H264_IDR or bool(_h264_recovery(unit)))


def _h264_recovery(unit: bytes) -> bool | None:
    """Whether the unit's recovery point is at this picture: recovery_frame_cnt 0. None if it has none."""
    if not unit or unit[0] & 31 != _H264_SEI:
        return None
    sei, at = unit[1:], 0
    while at + 1 < len(sei):
        kind, at = _sei_number(sei, at)
        size, at = _sei_number(sei, at)
        if kind == _SEI_RECOVERY_POINT and at < len(sei):
            return bool(sei[at] & 0x80)  # 0 in ue(v) is a set bit
        at += size
    return None


def _sei_number(sei: bytes, at: int) -> tuple[int, int]:
    total = 0
    while at < len(sei) and sei[at] == 0xFF:
        total += 255
        at += 1
    return (total + sei[at], at + 1) if at < len(sei) else (total, at)


class _Vp9Frame(NamedTuple):
    is_key: bool
    is_shown: bool


def _vp9_frame(packet: bytes) -> _Vp9Frame:
    bits = int.from_bytes(packet[:2].ljust(2, b"\0"), "big")
    profile = (bits >> 13 & 1) | (bits >> 12 & 1) << 1
    at = 11 - (profile == 3)  # after frame_marker, the profile and its reserved bit
    shows_existing, is_inter, is_shown = (bool(bits >> (at - place) & 1) for place in range(3))
    return _Vp9Frame(is_key=not shows_existing and not is_inter, is_shown=shows_existing or is_shown)
