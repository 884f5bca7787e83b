"""AVI: chunks in lists, an index of the chunks, and OpenDML's further RIFF lists.

Sources: Microsoft, "AVI RIFF File Reference"; "OpenDML AVI File Format Extensions" 1.02; for what recorders
write instead, libavformat/avidec.c: chunks of odd length without padding, sizes that were never filled in.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator

import numpy as np

from app.video.child.walkers.walker import BLOCK_BYTES, Note, Walker

_HEAD = struct.Struct("<4sI")
_HEAD_BYTES = _HEAD.size
_LIST_BYTES = 12  # the head of a list, with its kind
_ENTRY_BYTES = 16  # of the index
_HAS_INDEX = 0x10  # flag in avih
_USUAL_KINDS = (b"00dc", b"00db", b"01wb", b"01dc", b"00wb")  # sought after a break before any chunk
_ENDS = {b"RIFF": (b"RIFF",), b"movi": (b"RIFF", b"idx1"), b"rec ": (b"RIFF", b"idx1")}  # of unsized lists
_MAX_KINDS = 64  # of chunks that are counted
_SOUGHT_KINDS = 6
_MAX_HEADER_CHUNKS = 1000
_NEVER_WRITTEN = 0xFFFFFF00  # sizes from here on, and 0, stand for one that was to be filled in
_NOWHERE = 1 << 63  # the end of a list without a size


class AviWalker(Walker):
    """Walk through the RIFF lists, their movi lists, and the rec lists in these."""

    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._parents = [(b"", _NOWHERE)]  # kinds of lists and their ends; b"" is the file
        self._filled: Counter[bytes] = Counter()  # chunks of each kind that have content
        self._empty: Counter[bytes] = Counter()  # and chunks that have none
        self._is_after_odd = 0  # 1 if the last chunk has an odd length, and so a byte of padding
        self._wants_index = False  # the header declares one, and it has not come
        self._declared_end = 0  # of the RIFF lists, bytes into the file

    def _follow(self, end: int) -> None:
        window, unpack, filled = self._window, _HEAD.unpack_from, self._filled
        data, start, at = window.data, window.start, self._at
        parent_end, chunks_end = self._ends()
        is_after_odd, elements, room = self._is_after_odd, 0, len(data) - _LIST_BYTES
        while at < end:
            offset = at - start
            if not 0 <= offset <= room:
                data, start, offset = window.load(at), at, 0
                room = len(data) - _LIST_BYTES
            elements += 1
            if at < chunks_end:  # nearly all: what _step would do, without calls
                kind, size = unpack(data, offset)
                after = at + _HEAD_BYTES + size
                if kind in filled and size and after <= chunks_end:
                    filled[kind] += 1
                    is_after_odd = size & 1
                    at = after + is_after_odd
                    continue
            if at >= parent_end:
                self._parents.pop()
                parent_end, chunks_end = self._ends()
                continue
            self._at, self._is_after_odd = at, is_after_odd
            self._step(data[offset : offset + _LIST_BYTES])
            if self._is_lost:
                break
            at, is_after_odd = self._at, self._is_after_odd
            parent_end, chunks_end = self._ends()
        else:
            self._at, self._is_after_odd = at, is_after_odd
        self._elements += elements

    def _ends(self) -> tuple[int, int]:
        """Return the ends of the list that the next chunk is in, and of chunks whose heads are whole."""
        parent_end = self._parents[-1][1]
        return parent_end, min(parent_end, self._file_bytes - _LIST_BYTES)

    def _step(self, head: bytes) -> None:
        """Move into the list at `_at`, over the chunk, or out of its parent; or lose the chain."""
        kind, size, list_kind = head[:4], int.from_bytes(head[4:8], "little"), head[8:]
        at = self._at
        end = at + _HEAD_BYTES + size
        parent, parent_end = self._parents[-1]
        if parent_end == _NOWHERE and kind in _ENDS.get(parent, ()):
            self._parents.pop()
        elif not parent and kind != b"RIFF":
            self._at = self._file_bytes  # what follows the last RIFF list is of no interest
        elif kind == b"RIFF" or (kind == b"LIST" and list_kind in (b"movi", b"rec ")):
            self._enter(kind if kind == b"RIFF" else list_kind, size)
        elif _is_kind(kind) and end <= min(parent_end, self._file_bytes):
            if kind == b"idx1" or kind.startswith(b"ix"):
                self._wants_index = False
                if kind == b"idx1" and not self._notes:  # else chunks may have been skipped
                    self._check_index(at + _HEAD_BYTES, size)
            elif kind[:2].isdigit() and len(self._filled) < _MAX_KINDS:
                self._filled[kind] += bool(size)
                self._empty[kind] += not size
            self._is_after_odd = size & 1
            self._at = end + self._is_after_odd
        elif self._is_after_odd and self._is_chunk(at - 1):
            self._at, self._is_after_odd = at - 1, 0  # written without padding
        elif not _is_kind(kind):
            self._lose(at, "bytes that are no chunk")
        elif end > self._file_bytes and parent_end > self._file_bytes:
            self._lose(at, "the file ends inside a chunk")
        else:
            self._lose(at, "a chunk that ends behind the list that holds it")

    def _enter(self, kind: bytes, size: int) -> None:
        at = self._at
        parent, parent_end = self._parents[-1]
        end = at + _HEAD_BYTES + size
        is_unfinished = not size or (size >= _NEVER_WRITTEN and end > self._file_bytes)
        if kind == b"RIFF" and parent:
            self._lose(at, "a RIFF list that is shorter than it says")
            return
        if is_unfinished:
            self._note(at, "a recording that was not finished: the size of a list was never written")
            end = _NOWHERE
        elif end > parent_end + 1:
            self._lose(at, "a list that ends behind the one that holds it")
            return
        elif kind == b"RIFF":
            self._declared_end = max(self._declared_end, end)
        if kind == b"RIFF" and not at:
            self._read_header()
        self._parents.append((kind, end))
        self._at = at + _LIST_BYTES

    def _check_index(self, start: int, size: int) -> None:
        """Compare the index with the chunks that were found."""
        listed: Counter[bytes] = Counter()
        for at in range(start, start + size, BLOCK_BYTES):
            data = os.pread(self._descriptor, min(BLOCK_BYTES, start + size - at), at)
            whole = len(data) // _ENTRY_BYTES * 4
            names, counts = np.unique(np.frombuffer(data, ">u4", whole)[::4], return_counts=True)
            for name, count in zip(names[:_MAX_KINDS].tolist(), counts.tolist(), strict=False):
                listed[name.to_bytes(4, "big")] += count
        for kind, filled in self._filled.items():
            found = filled + self._empty[kind]
            if listed[kind] > found:  # cameras write indexes that list fewer
                text = f"the index lists {listed[kind]} chunks {kind.decode('latin-1')}, the file has {found}"
                self._note(start - _HEAD_BYTES, text)

    def _search(self) -> None:
        seen = tuple(kind for kind, _ in self._filled.most_common(_SOUGHT_KINDS))
        self._find((*(seen or _USUAL_KINDS), b"idx1"))
        self._parents = [(b"", _NOWHERE), (b"RIFF", _NOWHERE), (b"movi", _NOWHERE)]
        self._is_after_odd = 0

    def _is_element(self, position: int) -> bool:
        head = self._window.get(position, _HEAD_BYTES)
        size = int.from_bytes(head[4:], "little")
        end = position + _HEAD_BYTES + size
        after = end + (size & 1)
        return abs(after - self._file_bytes) <= 1 or self._is_chunk(after) or self._is_chunk(end)

    def _is_chunk(self, position: int) -> bool:
        head = self._window.get(position, _HEAD_BYTES)
        size = int.from_bytes(head[4:], "little")
        return _is_kind(head[:4]) and position + _HEAD_BYTES + size <= self._file_bytes

    def _check_end(self) -> None:
        if self._declared_end > self._file_bytes:
            self._note(self._file_bytes, "the file ends before its RIFF list does")
        if self._wants_index:
            self._note(self._file_bytes, "no index, though the header says that there is one")

    def _read_header(self) -> None:
        """Read from the first list whether there is an index, and whether it points beyond the file."""
        for kind, start, end in _chunks(self._descriptor, _LIST_BYTES, self._file_bytes, most=1):
            for inner, inner_start, inner_end in _chunks(self._descriptor, start, end):
                if kind == b"hdrl" and inner == b"avih":
                    flags = os.pread(self._descriptor, 4, inner_start + 12)
                    self._wants_index = bool(int.from_bytes(flags, "little") & _HAS_INDEX)
                if kind != b"hdrl" or inner != b"strl":
                    continue
                for name, body, body_end in _chunks(self._descriptor, inner_start, inner_end):
                    data = os.pread(self._descriptor, min(body_end - body, BLOCK_BYTES), body)
                    if name != b"indx" or len(data) < 24 or data[3]:  # not an index of indexes
                        continue
                    count = min(int.from_bytes(data[4:8], "little"), (len(data) - 24) // _ENTRY_BYTES)
                    places = range(24, 24 + count * _ENTRY_BYTES, _ENTRY_BYTES)
                    if any(sum(struct.unpack_from("<QI", data, at)) > self._file_bytes for at in places):
                        self._note(body - _HEAD_BYTES, "the index points beyond the end of the file")
                        break


def _chunks(
    descriptor: int, start: int, end: int, *, most: int = _MAX_HEADER_CHUNKS
) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's kind (a list's own kind), and where its content starts and ends."""
    at = start
    for _ in range(most):
        head = os.pread(descriptor, _LIST_BYTES, at) if at + _HEAD_BYTES <= end else b""
        if len(head) < _HEAD_BYTES:
            return
        size = int.from_bytes(head[4:8], "little")
        body_end = min(at + _HEAD_BYTES + size, end)
        if head[:4] == b"LIST":
            yield head[8:], at + _LIST_BYTES, body_end
        else:
            yield head[:4], at + _HEAD_BYTES, body_end
        at += _HEAD_BYTES + size + (size & 1)


def _is_kind(kind: bytes) -> bool:
    return len(kind) == 4 and kind.isascii() and kind.decode("ascii").isprintable()
