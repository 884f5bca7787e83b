"""Flash video: each tag is followed by its own length.

Sources: Adobe Flash Video File Format Specification 10.1, annex E; libavformat/flvdec.c for what recorders
write in place of that length.
"""

from __future__ import annotations

import os
import struct

import numpy as np

from app.video.child.walkers.walker import BLOCK_BYTES, Note, Walker

_LENGTH_BYTES = 4  # of the field behind each tag
_HEAD_BYTES = 11  # of a tag
_STEP_BYTES = _LENGTH_BYTES + _HEAD_BYTES
_STEP = struct.Struct(">II7xB")  # a length, kind and size of the next tag, its content's first byte
_KINDS = frozenset((8, 9, 15, 18))  # sound, video, data as AMF3, data
_PICTURE = 9
_FRAME_TYPE = 0x70  # bits of the first byte of a picture's tag: 1 to 5
_SEARCHED_KINDS = (8, 9, 18)
_KIND_BITS = 0x1F  # without the bit of an encrypted tag


class FlvWalker(Walker):
    """`_at` is where the length of the previous tag is stored; the next tag follows it.

    A tag of an unknown kind is no break: the length behind it proves that it is a tag. Only in a file that
    stores no lengths must the kind be known.
    """

    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._at = int.from_bytes(os.pread(descriptor, 4, 5), "big")  # behind the header
        self._first = self._at + _LENGTH_BYTES
        self._tag = self._first  # the last one, bytes into the file
        self._tag_bytes: int | None = None  # of the last tag with its head; None if there is none
        self._tags = 0
        # Some recorders write 0 in place of the tags' lengths.
        head = self._window.get(self._first, _HEAD_BYTES)
        stored = self._first + _HEAD_BYTES + int.from_bytes(head[1:4], "big")
        self._stores_zero = self._window.get(stored, _LENGTH_BYTES) == bytes(_LENGTH_BYTES)

    def _follow(self, end: int) -> None:
        window, unpack = self._window, _STEP.unpack_from
        data, start, at, tag_bytes = window.data, window.start, self._at, self._tag_bytes
        tags_end = self._file_bytes - _STEP.size
        tags, room = 0, len(data) - _STEP.size
        while at < end:
            offset = at - start
            if not 0 <= offset <= room:
                data, start, offset = window.load(at), at, 0
                room = len(data) - _STEP.size
            if at < tags_end:  # nearly all: what _step would do, without calls
                stored, kind_and_size, first = unpack(data, offset)
                if stored == tag_bytes and (first & _FRAME_TYPE or kind_and_size >> 24 != _PICTURE):
                    tag_bytes = _HEAD_BYTES + (kind_and_size & 0xFFFFFF)
                    at += _LENGTH_BYTES + tag_bytes
                    tags += 1
                    continue
            self._move(at, tag_bytes, tags)
            self._step(data[offset : offset + _STEP.size])
            if self._is_lost:
                return
            at, tag_bytes, tags = self._at, self._tag_bytes, 0
        self._move(at, tag_bytes, tags)
        if at > self._file_bytes:
            self._lose(self._tag, "the file ends inside a tag")

    def _move(self, at: int, tag_bytes: int | None, tags: int) -> None:
        """Store the position that `tags` more tags have led to."""
        if tags and tag_bytes is not None:
            self._tag = at - tag_bytes
        self._at, self._tag_bytes = at, tag_bytes
        self._tags += tags
        self._elements += tags

    def _step(self, head: bytes) -> None:
        """Move over the length at `_at` and the tag behind it; or lose the chain."""
        last_bytes, stored = self._tag_bytes, int.from_bytes(head[:_LENGTH_BYTES], "big")
        is_usual = last_bytes is None or len(head) < _LENGTH_BYTES or (self._stores_zero and not stored)
        if last_bytes is not None and not is_usual:  # see flvdec.c for what recorders write instead
            sum_of_all = self._at - self._first - _LENGTH_BYTES * (self._tags - 1)
            usual = (last_bytes - 1, last_bytes - _HEAD_BYTES, sum_of_all)
            is_usual = stored == last_bytes or (stored in usual and stored > 0)
        if not is_usual:
            self._lose_chain("a tag's length is not the one that is stored behind it")
        elif len(head) < _STEP_BYTES:  # the end: nothing, or the last tag's length
            if len(head) not in (0, _LENGTH_BYTES):
                self._note(self._at, "the file ends inside a tag")
            self._at = self._file_bytes
        elif self._stores_zero and head[4] & _KIND_BITS not in _KINDS:
            self._lose_chain("bytes that are no tag")
        else:
            tag_bytes = _HEAD_BYTES + int.from_bytes(head[5:8], "big")
            is_empty = tag_bytes == _HEAD_BYTES or len(head) == _STEP_BYTES
            if head[4] == _PICTURE and not is_empty and not head[_STEP_BYTES] & _FRAME_TYPE:
                self._note(self._at, "a picture's tag that holds none")
            self._move(self._at + _LENGTH_BYTES + tag_bytes, tag_bytes, 1)

    def _lose_chain(self, reason: str) -> None:
        self._lose(self._at, reason, search_from=self._tag + 1)

    def _search(self) -> None:
        block = os.pread(self._descriptor, BLOCK_BYTES, self._at)
        data = np.frombuffer(block, np.uint8)
        count = max(0, len(data) - _HEAD_BYTES + 1)
        # A tag may start where there are a known kind and a stream id of 0.
        may_start = np.isin(data[:count] & _KIND_BITS, _SEARCHED_KINDS)
        for place in (8, 9, 10):
            may_start &= data[place : place + count] == 0
        for offset in np.flatnonzero(may_start).tolist():
            self._elements += 1
            position = self._at + offset
            head = self._window.get(position, _HEAD_BYTES)
            tag_bytes = _HEAD_BYTES + int.from_bytes(head[1:4], "big")
            after = self._window.get(position + tag_bytes, _STEP_BYTES)
            stored = int.from_bytes(after[:_LENGTH_BYTES], "big")
            if self._stores_zero:
                is_tag = not stored and len(after) == _STEP_BYTES and after[4] & _KIND_BITS in _KINDS
            else:
                lengths = (tag_bytes, tag_bytes - 1, tag_bytes - _HEAD_BYTES)
                is_tag = len(after) >= _LENGTH_BYTES and stored in lengths and tag_bytes > _HEAD_BYTES
            if is_tag:
                self._at = position - _LENGTH_BYTES
                self._tag_bytes = None
                self._is_lost = False
                return
        is_last = self._at + len(block) >= self._file_bytes or not block
        self._at = self._file_bytes if is_last else self._at + len(block) - _HEAD_BYTES + 1
