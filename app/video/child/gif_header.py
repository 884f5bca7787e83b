"""Whether a GIF is a still picture or an animation, before FFmpeg sees it. Source: GIF89a, 17 to 27."""

from __future__ import annotations

import contextlib

from app.video.child.walkers.walker import Window

_SCREEN_BYTES = 13  # signature and screen descriptor
_HAS_COLOURS = 0x80
_IMAGE, _EXTENSION = 0x2C, 0x21
_IMAGE_HEAD_BYTES = 10  # with the kind of the block
_MAX_BLOCKS = 200_000  # a file with more blocks is no small still picture


def is_still_gif(descriptor: int) -> bool:
    """Whether the GIF holds at most one picture."""
    window = Window(descriptor)
    images = 0
    with contextlib.suppress(IndexError):  # the file ends
        at = _SCREEN_BYTES + _colour_table_bytes(window.get(0, _SCREEN_BYTES)[10])
        for _ in range(_MAX_BLOCKS):
            kind = window.get(at, 1)[0]
            if kind == _IMAGE:
                images += 1
                if images == 2:
                    return False
                flags = window.get(at, _IMAGE_HEAD_BYTES)[9]
                at += _IMAGE_HEAD_BYTES + _colour_table_bytes(flags) + 1
            elif kind == _EXTENSION:
                at += 2
            else:  # the end, or damage
                break
            while length := window.get(at, 1)[0]:
                at += 1 + length
            at += 1
    return True


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_COLOURS else 0
