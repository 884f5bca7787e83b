"""Videos with as many tags as are asked for, each of another name, in the containers that have tags.

FFmpeg compares each tag with all before it, so their number hurts long before their size. Sources: ISO/IEC
14496-12 and Apple's QuickTime File Format (boxes), RFC 3533 (Ogg pages), the Theora specification 6.3, the
FLV and ASF specifications.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from clips import ClipFolder
from hostile_files import box, matroska_with_tags


def _names(count: int) -> Iterator[bytes]:
    return (b"TAG%07d" % number for number in range(count))


def _mp4(clips: ClipFolder, count: int) -> bytes:
    """A movie of MP4 whose header, at its end, gets free-form tags as iTunes writes them."""

    def tag(name: bytes) -> bytes:
        mean = box(b"mean", bytes(4), b"com.example")
        return box(b"----", mean, box(b"name", bytes(4), name), box(b"data", b"\0\0\0\1", bytes(4), name))

    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    tags = box(b"meta", bytes(4), handler, box(b"ilst", *map(tag, _names(count))))
    return _in_movie(clips.get("h264.mp4"), box(b"udta", tags))


def _mov(clips: ClipFolder, count: int) -> bytes:
    """A MOV whose tags have their names in a table of keys."""
    keys = box(b"keys", bytes(4), struct.pack(">I", count), *(box(b"mdta", name) for name in _names(count)))
    values = (
        box(struct.pack(">I", number), box(b"data", b"\0\0\0\1", bytes(4), name))
        for number, name in enumerate(_names(count), 1)
    )
    handler = box(b"hdlr", bytes(8), b"mdta", bytes(13))
    return _in_movie(clips.get("h264_sound.mov"), box(b"meta", handler, keys, box(b"ilst", *values)))


def _in_movie(video: Path, boxes: bytes) -> bytes:
    data = video.read_bytes()
    start = data.rindex(b"moov") - 4  # its header is the last box
    return data[:start] + box(b"moov", data[start + 8 :], boxes)


def _webm(clips: ClipFolder, count: int) -> bytes:
    return matroska_with_tags(clips, count)


def _ogg(clips: ClipFolder, count: int) -> bytes:
    """The second packet, of comments, shares a page with the third, of tables."""
    data = clips.get("theora.ogg").read_bytes()
    first_end = _page_end(data, 0)
    second_end = _page_end(data, first_end)
    lengths = data[first_end + 27 : first_end + 27 + data[first_end + 26]]
    comments_end = next(place for place, length in enumerate(lengths) if length < 255) + 1
    rest = first_end + 27 + len(lengths) + sum(lengths[:comments_end])
    tables = data[rest:second_end]
    serial = data[14:18]
    comments = b"".join(_sized(name + b"=" + name) for name in _names(count))
    packets = [b"\x81theora" + _sized(b"x") + struct.pack("<I", count) + comments, tables]
    pages, after = b"".join(_pages(packets, serial)), data[second_end:]
    return data[:first_end] + pages + after


def _sized(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _page_end(data: bytes, start: int) -> int:
    segments = data[start + 26]
    return start + 27 + segments + sum(data[start + 27 : start + 27 + segments])


def _pages(packets: list[bytes], serial: bytes) -> Iterator[bytes]:
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    data, at = b"".join(packets), 0
    for number in range(0, len(lacing), 255):
        table = lacing[number : number + 255]
        is_continued = number > 0 and lacing[number - 1] == 255
        head = b"OggS\0" + bytes([is_continued]) + bytes(8) + serial + struct.pack("<I", 1 + number // 255)
        body = bytes([len(table)]) + table + data[at : at + sum(table)]
        at += sum(table)
        yield head + struct.pack("<I", _ogg_checksum(head + bytes(4) + body)) + body


_REVERSED = bytes(int(format(byte, "08b")[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """Of zlib's polynomial, but most significant bit first and nothing inverted."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(format(reflected, "032b")[::-1], 2)


def _flv(clips: ClipFolder, count: int) -> bytes:
    """Script tags before the first of the video; each holds as many values as 16 MB do."""
    data = clips.get("h264.flv").read_bytes()
    head, names, scripts = 13, list(_names(count)), []
    for first in range(0, count, 300_000):
        some = names[first : first + 300_000]
        values = b"".join(struct.pack(">H", len(name)) + name + b"\2\0\1x" for name in some)
        body = b"\2\0\x0aonMetaData\x08" + struct.pack(">I", len(some)) + values + b"\0\0\x09"
        tag = b"\x12" + len(body).to_bytes(3, "big") + bytes(7) + body
        scripts.append(tag + struct.pack(">I", len(tag)))
    return data[:head] + b"".join(scripts) + data[head:]


def _avi(clips: ClipFolder, count: int) -> bytes:
    """Tags of an AVI have names of four letters."""
    data = clips.get("mpeg4.avi").read_bytes()
    at = data.index(b"LIST", 16)
    entries = (bytes(65 + number // 32**place % 32 for place in range(4)) for number in range(count))
    tags = b"INFO" + b"".join(name + struct.pack("<I", 2) + b"x\0" for name in entries)
    tagged = data[:at] + b"LIST" + struct.pack("<I", len(tags)) + tags + data[at:]
    return tagged[:4] + struct.pack("<I", len(tagged) - 8) + tagged[8:]


_ASF_CONTENT = bytes.fromhex("40a4d0d207e3d21197f000a0c95ea850")


def _asf(clips: ClipFolder, count: int) -> bytes:
    """Objects of extended content at the end of the header's objects, of up to 65,535 names each."""
    data = clips.get("wmv2.asf").read_bytes()
    size, number = struct.unpack("<QI", data[16:28])
    names, objects = list(_names(count)), []
    for first in range(0, count, 65_000):
        some = names[first : first + 65_000]
        body = struct.pack("<H", len(some)) + b"".join(map(_asf_tag, some))
        objects.append(_ASF_CONTENT + struct.pack("<Q", 24 + len(body)) + body)
    added = b"".join(objects)
    head = data[:16] + struct.pack("<QI", size + len(added), number + len(objects)) + data[28:size]
    return head + added + data[size:]


def _asf_tag(name: bytes) -> bytes:
    text = name.decode("ascii").encode("utf-16-le") + bytes(2)
    return struct.pack("<H", len(text)) + text + struct.pack("<HH", 0, 4) + b"x\0\0\0"


_MAKERS: dict[str, Callable[[ClipFolder, int], bytes]] = {
    "mp4": _mp4,
    "mov": _mov,
    "webm": _webm,
    "ogg": _ogg,
    "flv": _flv,
    "avi": _avi,
    "asf": _asf,
}


def _made(maker: Callable[[ClipFolder, int], bytes], count: int, clips: ClipFolder, target: Path) -> None:
    target.write_bytes(maker(clips, count))


def tagged(container: str, count: int) -> Callable[[ClipFolder, Path], None]:
    """Return what writes a video with `count` tags."""
    return partial(_made, _MAKERS[container], count)


# name: (maker, the error's code)
MANY_TAGS: dict[str, tuple[Callable[[ClipFolder, Path], None], str]] = {
    f"million_tags.{container}": (tagged(container, 1_000_000), "over_limit") for container in _MAKERS
}
