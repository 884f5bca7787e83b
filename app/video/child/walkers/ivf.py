"""IVF: a header, and frames with their sizes and time stamps.

Sources: libvpx, ivfdec.c and ivfenc.c; libavformat/ivfenc.c, which writes the duration in place of the count.
"""

from __future__ import annotations

import os
import struct

from app.video.child.walkers.walker import Note, Walker

_HEADER = struct.Struct("<8x4s12xI4x")
_HEAD = struct.Struct("<IQ")
_ORDERED = (b"VP80", b"VP90", b"AV01")  # codecs whose time stamps never go back
_UNKNOWN = (0, 0xFFFFFFFF)  # in place of a count


class IvfWalker(Walker):
    """Check that frames fill the file. Nothing marks where one begins: the first break ends the check."""

    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        header = os.pread(descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        codec, self._declared = _HEADER.unpack(header)
        self._is_ordered = codec in _ORDERED
        self._at = _HEADER.size
        self._frames = 0
        self._first_pts = self._pts = 0
        self._longest_step = 0

    def _follow(self, end: int) -> None:
        while self._at < end:
            head = self._window.get(self._at, _HEAD.size).ljust(_HEAD.size, b"\xff")
            size, pts = _HEAD.unpack(head)
            self._elements += 1
            if self._at + _HEAD.size + size > self._file_bytes:
                self._lose(self._at, "the file ends inside a frame", search_from=self._at)
                return
            if not self._frames:
                self._first_pts = self._pts = pts
            if self._is_ordered and pts < self._pts:
                self._lose(self._at, "bytes that are no frame", search_from=self._at)
                return
            self._longest_step = max(self._longest_step, pts - self._pts)
            self._pts = pts
            self._frames += 1
            self._at += _HEAD.size + size

    def _search(self) -> None:
        self._at = self._file_bytes

    def _check_end(self) -> None:
        duration = self._pts - self._first_pts + self._longest_step
        is_short = self._declared not in _UNKNOWN and self._declared > max(self._frames, duration)
        if is_short and not self._notes:
            self._note(self._file_bytes, "the header tells of more frames than there are")
