"""Before FFmpeg: whether a GIF is a still picture or an animation. Source: GIF89a, 17 to 27."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_SCREEN_BYTES = 13  # signature and screen descriptor
_HAS_COLOURS = 0x80
_IMAGE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_IMAGE_HEAD_BYTES = 9
_PIECE_BYTES = 64 * 1024
_MAX_BLOCKS = 200_000  # looked at; what takes more is no small still picture


class _Bytes:
    """Reads a file forward from its beginning, in pieces. Raises EOFError at its end."""

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
    """Whether the GIF holds one picture at most."""
    images = 0
    with contextlib.suppress(EOFError):
        for _ in _images(_Bytes(descriptor)):
            images += 1
            if images == 2:
                break
    return images < 2


def _images(data: _Bytes) -> Iterator[None]:
    """Yield where each picture begins. Raises EOFError at the file's end."""
    data.skip(_colours_bytes(data.take(_SCREEN_BYTES)[10]))
    for _ in range(_MAX_BLOCKS):
        kind = data.take(1)[0]
        if kind == _END:
            return
        if kind == _IMAGE:
            yield
            data.skip(_colours_bytes(data.take(_IMAGE_HEAD_BYTES)[8]) + 1)
        elif kind == _EXTENSION:
            data.skip(1)
        else:
            return
        _skip_sub_blocks(data)


def _colours_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_COLOURS else 0


def _skip_sub_blocks(data: _Bytes) -> None:
    while length := data.take(1)[0]:
        data.skip(length)
