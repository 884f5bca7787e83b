"""Matroska and WebM: elements in a segment, in its clusters, and in their groups of blocks.

Before FFmpeg sees the file, `MatroskaReader` reads where it ends and how many tags it has.

Sources: RFC 8794 (EBML), sections 4 to 6; RFC 9559 (Matroska), section 5. Unknown elements are skipped, as
RFC 8794 asks of readers. A byte that starts no identifier breaks the chain, and so does an element that ends
behind the one that holds it. In a cluster an unknown element must lead to a known one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from app.video.child.walkers.walker import Note, Walker

EBML_HEADER = b"\x1aE\xdf\xa3"  # how a file begins
_HEADER, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_SEEK_HEAD, _INFO, _TRACKS, _CUES = 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B
_CHAPTERS, _TAGS, _ATTACHMENTS = 0x1043A770, 0x1254C367, 0x1941A469
_VOID, _CHECKSUM = 0xEC, 0xBF
_GROUP, _BLOCK, _SIMPLE_BLOCK = 0xA0, 0xA1, 0xA3
_TIME, _POSITION, _SIZE_BEFORE, _SILENT = 0xE7, 0xA7, 0xAB, 0x5854
_LEVEL_0 = frozenset((_HEADER, _SEGMENT))
_LEVEL_1 = frozenset((_CLUSTER, _SEEK_HEAD, _INFO, _TRACKS, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS))
_OUTER = _LEVEL_0 | _LEVEL_1
_OF_CLUSTERS = frozenset((_GROUP, _BLOCK, _SIMPLE_BLOCK))
_FIRST_IN_CLUSTER = _OF_CLUSTERS | {_VOID, _CHECKSUM, _TIME, _POSITION, _SIZE_BEFORE, _SILENT}
_MASTERS = frozenset((_SEGMENT, _CLUSTER, _GROUP))  # that are walked through
_MAY_LACK_SIZE = frozenset((_SEGMENT, _CLUSTER))
_DURATION, _REFERENCE, _PADDING, _ADDITIONS = 0x9B, 0xFB, 0x75A2, 0x75A1
_USUAL = frozenset((_BLOCK, _SIMPLE_BLOCK, _TIME, _DURATION, _REFERENCE, _PADDING, _ADDITIONS))
_OTHERS_IN_CLUSTER = frozenset((0xAF, 0xA2, 0xFA, 0xFD, 0xA4, 0x8E, 0xC8))  # as in RFC 9559, 5.1.3
_KNOWN = _OUTER | _FIRST_IN_CLUSTER | _USUAL | _OTHERS_IN_CLUSTER
_HEAD_BYTES = 12  # of an element at most: an identifier of 4 bytes and a size of 8
_NO_SIZE = 1 << 62  # of an element whose size is unknown, as in a live recording
_MASKS = tuple((1 << 7 * length) - 1 for length in range(9))  # of the value in a size, by its length in bytes
# By a size's first byte: how many it has; 0 where it has too many, or where it may stand for an unknown size.
_SIZE_BYTES = tuple(9 - first.bit_length() if first & first + 1 else 0 for first in range(256))
# By that: what a size with its marker lacks to the bytes of an element whose identifier has one byte.
_BESIDE_SIZE = (_NO_SIZE, *(1 + count - (1 << 7 * count) for count in range(1, 9)))
_NOWHERE = 1 << 63  # the end of an element of unknown size
_CUT = "the file ends inside an element"
_NO_ELEMENT = "bytes that are no element"

_SEEK_ID, _SEEK_POSITION = 0x53AB, 0x53AC
_SIMPLE_TAG = 0x67C8
_OF_TAGS = (_TAGS, 0x7373, _SIMPLE_TAG)
_MAX_ELEMENTS = 100_000  # read in search of tags; the rest is left to FFmpeg and its limits
_MAX_DEPTH = 16


class _Element(NamedTuple):
    name: int
    start: int  # of its content, bytes into the file
    end: int | None  # None if it is unknown


class MatroskaReader:
    """Read a file's elements. `end` is where its segment ends, bytes into the file; None if unknown."""

    def __init__(self, descriptor: int, file_bytes: int) -> None:
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._elements = 0
        self._segment: _Element | None = None
        header = self._element(0)
        if header is not None and header.name == _HEADER and header.end is not None:
            segment = self._element(header.end)
            self._segment = segment if segment and segment.name == _SEGMENT else None
        self.end = self._segment.end if self._segment else None

    def tags(self) -> Iterator[_Element]:
        """Yield each tag that FFmpeg reads with the header.

        These are the tags before the clusters, and those that a seek head points at.
        """
        if self._segment is None:
            return
        seen, pointed_at = set(), set()
        for element in self._children(self._segment):
            if element.name == _CLUSTER:
                break
            if element.name == _SEEK_HEAD:
                for seek in self._children(element):
                    fields = {child.name: self._number(child) for child in self._children(seek)}
                    if fields.get(_SEEK_ID) == _TAGS and _SEEK_POSITION in fields:
                        pointed_at.add(self._segment.start + fields[_SEEK_POSITION])
            elif element.name == _TAGS:
                seen.add(element.start)
                yield from self._tags_in(element)
        for position in pointed_at:
            tags = self._element(position)
            if tags is not None and tags.name == _TAGS and tags.start not in seen:
                yield from self._tags_in(tags)

    def _tags_in(self, parent: _Element, depth: int = 0) -> Iterator[_Element]:
        for child in self._children(parent):
            if child.name == _SIMPLE_TAG:
                yield child
            if child.name in _OF_TAGS and depth < _MAX_DEPTH:
                yield from self._tags_in(child, depth + 1)

    def _number(self, element: _Element) -> int:
        length = 0 if element.end is None else min(8, element.end - element.start)
        return int.from_bytes(os.pread(self._descriptor, length, element.start), "big")

    def _children(self, parent: _Element) -> Iterator[_Element]:
        at = parent.start
        end = self._file_bytes if parent.end is None else min(parent.end, self._file_bytes)
        while at < end and self._elements < _MAX_ELEMENTS:
            self._elements += 1
            child = self._element(at)
            if child is None:
                return
            yield child
            if child.end is None:
                return
            at = child.end

    def _element(self, at: int) -> _Element | None:
        head = os.pread(self._descriptor, _HEAD_BYTES, at) if 0 <= at < self._file_bytes else b""
        name, head_bytes, size = _read_element(head, 0)
        start = at + head_bytes
        return _Element(name, start, None if size == _NO_SIZE else start + size) if name else None


class MatroskaWalker(Walker):
    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._parents = [(0, _NOWHERE)]  # identifiers and ends, the outermost first: 0 is the file
        self._declared_end = 0  # of the segment, bytes into the file

    def _follow(self, end: int) -> None:
        window = self._window
        data, start, at = window.data, window.start, self._at
        parent_end, blocks_end = self._ends()
        elements, room = 0, len(data) - _HEAD_BYTES
        while at < end:
            offset = at - start
            if not 0 <= offset <= room:
                data, start, offset = window.load(at), at, 0
                room = len(data) - _HEAD_BYTES
            elements += 1
            if at < blocks_end and data[offset] in _USUAL:  # nearly all: what _step would do, without calls
                size_bytes = _SIZE_BYTES[data[offset + 1]]
                size = int.from_bytes(data[offset + 1 : offset + 1 + size_bytes], "big")
                after = at + size + _BESIDE_SIZE[size_bytes]
                if after <= blocks_end:
                    at = after
                    continue
            if at >= parent_end:
                self._parents.pop()
                parent_end, blocks_end = self._ends()
                continue
            self._at = at
            self._step(*_read_element(data, offset))
            if self._is_lost:
                break
            at = self._at
            parent_end, blocks_end = self._ends()
        else:
            self._at = at
        self._elements += elements

    def _ends(self) -> tuple[int, int]:
        """Return the end of the next element's parent, and that of blocks; 0 outside a cluster."""
        parent, parent_end = self._parents[-1]
        is_cluster = parent in (_CLUSTER, _GROUP)
        return parent_end, min(parent_end, self._file_bytes - _HEAD_BYTES) if is_cluster else 0

    def _step(self, name: int, head_bytes: int, size: int) -> None:
        """Move into the element at `_at`, over it, or out of the one that holds it; or lose the chain."""
        at = self._at
        parent, parent_end = self._parents[-1]
        if parent_end == _NOWHERE and name in (_OUTER if parent == _CLUSTER else _LEVEL_0) and parent:
            self._parents.pop()
            return
        if not parent and name not in _LEVEL_0 and name != _VOID:
            if name in _LEVEL_1:
                self._note(at, "a segment that is longer than it says")
            self._at = self._file_bytes  # what else follows the segment is of no interest
            return
        fault = self._fault(name, head_bytes, size)
        if fault:
            self._lose(at, fault, search_from=at if name == _CLUSTER else at + 1)
        elif name in _MASTERS:
            end = _NOWHERE if size == _NO_SIZE else at + head_bytes + size
            self._parents.append((name, end))
            self._at = at + head_bytes
            if name == _SEGMENT and end != _NOWHERE:
                self._declared_end = max(self._declared_end, end)
        else:
            self._at = at + head_bytes + size

    def _fault(self, name: int, head_bytes: int, size: int) -> str | None:
        """Return what is wrong with the element at `_at`, if anything is."""
        parent, parent_end = self._parents[-1]
        end = self._at + head_bytes + size
        if not name:
            return _CUT if self._file_bytes - self._at < _HEAD_BYTES else _NO_ELEMENT
        if size == _NO_SIZE:
            return None if name in _MAY_LACK_SIZE else "an element without a size"
        if end > min(parent_end, _NOWHERE if name in _MASTERS else self._file_bytes):
            is_cut = parent_end > self._file_bytes
            return _CUT if is_cut else "an element that ends behind the one that holds it"
        if parent == _SEGMENT:
            return "a block outside a cluster" if name in _OF_CLUSTERS else None
        if name in _OUTER and parent:
            return "a cluster that is shorter than it says"
        must_lead_to_known = parent and name not in _KNOWN and end not in (parent_end, self._file_bytes)
        after = _read_element(self._window.get(end, _HEAD_BYTES), 0)[0] if must_lead_to_known else _VOID
        return None if after in _KNOWN else _NO_ELEMENT

    def _search(self) -> None:
        self._find((_CLUSTER.to_bytes(4, "big"),))
        self._parents = [(0, _NOWHERE), (_SEGMENT, _NOWHERE)]

    def _is_element(self, position: int) -> bool:
        name, head_bytes, size = _read_element(self._window.get(position, _HEAD_BYTES), 0)
        child, _, child_size = _read_element(self._window.get(position + head_bytes, _HEAD_BYTES), 0)
        return name == _CLUSTER and child in _FIRST_IN_CLUSTER and child_size <= size

    def _check_end(self) -> None:
        if self._declared_end > self._file_bytes:
            self._note(self._file_bytes, "the file ends before its segment does")


def _read_element(data: bytes, offset: int) -> tuple[int, int, int]:
    """Return the identifier (0 if there is no element), the bytes of the head, and the size of the rest."""
    try:
        name_bytes = 9 - data[offset].bit_length()
        size_at = offset + name_bytes
        size_bytes = 9 - data[size_at].bit_length()
    except IndexError:
        return 0, 1, 0
    content = size_at + size_bytes
    if name_bytes > 4 or size_bytes > 8 or content > len(data):
        return 0, 1, 0
    mask = _MASKS[size_bytes]
    size = int.from_bytes(data[size_at:content], "big") & mask
    name = int.from_bytes(data[offset:size_at], "big")
    return name, content - offset, _NO_SIZE if size == mask else size
