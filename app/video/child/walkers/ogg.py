"""Ogg: pages of one or more streams, numbered in each.

Source: RFC 3533, section 6. The checksums of pages are left to FFmpeg: its demuxer drops a page whose
checksum is wrong and logs "CRC mismatch" (libavformat/oggdec.c; seen with FFmpeg 8.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from app.video.child.walkers.walker import Note, Walker

_CAPTURE = b"OggS\0"  # with the version, the only one
_HEAD = struct.Struct("<5sBqII4xB")
_MOST_HEAD_BYTES = _HEAD.size + 255
_CONTINUED, _FIRST, _LAST = 1, 2, 4  # flags of a page
_PAGES = 1 << 32  # numbers of them; then they begin again
_NO_GRANULE = -1  # no frame ends on the page
_MAX_STREAMS = 256


@dataclass(slots=True)
class _Stream:
    page: int  # number of its last one
    is_at_headers: bool  # no page of its frames has come
    has_ended: bool


class OggWalker(Walker):
    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._streams: dict[int, _Stream] = {}  # by serial number
        self._last = 0  # the last page, bytes into the file

    def _follow(self, end: int) -> None:
        window, unpack = self._window, _HEAD.unpack_from
        data, start, at = window.data, window.start, self._at
        while at < end:
            offset = at - start
            if offset < 0 or offset + _MOST_HEAD_BYTES > len(data):
                data, start, offset = window.load(at), at, 0
            if data[offset : offset + 5] != _CAPTURE:
                self._lose(at, "bytes that are no page", search_from=self._last + 1)
                return
            # A page is its head, the sizes of its segments, and these.
            first, size = offset + _HEAD.size, _HEAD.size
            if first <= len(data):
                sizes = data[first : first + data[first - 1]]
                others = sizes.translate(None, b"\xff")  # than 255, which nearly all are
                size += len(sizes) + 255 * (len(sizes) - len(others)) + sum(others)
            self._elements += 1
            if at + size > self._file_bytes:
                self._lose(at, "the file ends inside a page")
                return
            _, flags, granule, serial, page, _ = unpack(data, offset)
            stream = self._streams.get(serial)
            if stream and not flags & ~_CONTINUED and page == stream.page + 1 and not stream.is_at_headers:
                stream.page = page  # nearly all pages
            elif stream is None or flags & _FIRST:
                if len(self._streams) >= _MAX_STREAMS and serial not in self._streams:
                    self._streams = {key: one for key, one in self._streams.items() if not one.has_ended}
                if len(self._streams) < _MAX_STREAMS or serial in self._streams:
                    self._streams[serial] = _Stream(page, granule == 0, bool(flags & _LAST))
            else:
                # A server sends its headers to each listener, and then the pages that are live.
                may_jump = stream.is_at_headers and granule not in (0, _NO_GRANULE)
                if page != (stream.page + 1) % _PAGES and not may_jump:
                    self._note(
                        at, f"a page is missing: page {page} of a stream comes after page {stream.page}"
                    )
                stream.page = page
                stream.is_at_headers &= granule in (0, _NO_GRANULE)
                stream.has_ended |= bool(flags & _LAST)
            self._last = at
            at += size
        self._at = at

    def _search(self) -> None:
        self._find((_CAPTURE,))  # five bytes by chance: once in a terabyte

    def _check_end(self) -> None:
        if not all(stream.has_ended for stream in self._streams.values()):
            self._note(self._file_bytes, "no last page: a stream stops without its end mark")
