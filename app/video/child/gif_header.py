"""Whether a GIF is a still picture or an animation, before FFmpeg sees it. Source: GIF89a, 17 to 27."""

from __future__ import annotations

import contextlib
import os

_SCREEN_BYTES = 13  # signature and screen descriptor
_HAS_COLOURS = 0x80
_IMAGE, _EXTENSION = 0x2C, 0x21
_IMAGE_HEAD_BYTES = 9
_PIECE_BYTES = 64 * 1024
_MAX_BLOCKS = 200_000  # a file with more blocks is no small still picture


class _Bytes:
    """Read a file forward from its beginning, in pieces. Raises EOFError at its end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0
        self._piece = b""
        self._piece_at = 0

    def take(self, count: int) -> bytes:
        begin = self._at - self._piece_at
        if not 0 <= begin <= len(self._piece) - count:
            self._piece = os.pread(self._descriptor, max(count, _PIECE_BYTES), self._at)
            self._piece_at, begin = self._at, 0
        self._at += count
        taken = self._piece[begin : begin + count]
        if len(taken) < count:
            raise EOFError
        return taken

    def skip(self, count: int) -> None:
        self._at += count


def is_still_gif(descriptor: int) -> bool:
    """Whether the GIF holds at most one picture."""
    data = _Bytes(descriptor)
    images = 0
    with contextlib.suppress(EOFError):
        data.skip(_colour_table_bytes(data.take(_SCREEN_BYTES)[10]))
        for _ in range(_MAX_BLOCKS):
            kind = data.take(1)[0]
            if kind == _IMAGE:
                images += 1
                if images == 2:
                    return False
                data.skip(_colour_table_bytes(data.take(_IMAGE_HEAD_BYTES)[8]) + 1)
            elif kind == _EXTENSION:
                data.skip(1)
            else:  # the end, or damage
                break
            while length := data.take(1)[0]:
                data.skip(length)
    return True


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_COLOURS else 0
