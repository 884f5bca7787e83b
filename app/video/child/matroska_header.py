"""Where a Matroska or WebM file ends and how many tags it has, read before FFmpeg sees it.

Sources: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

EBML_HEADER = b"\x1aE\xdf\xa3"  # how a file begins
HEADER, SEGMENT, CLUSTER, SEEK_HEAD, TAGS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x114D9B74, 0x1254C367
_SEEK_ID, _SEEK_POSITION = 0x53AB, 0x53AC
_TAG, _SIMPLE_TAG = 0x7373, 0x67C8
_OF_TAGS = (TAGS, _TAG, _SIMPLE_TAG)
_MAX_ELEMENTS = 100_000  # read in search of tags; the rest is left to FFmpeg and its limits
_MAX_DEPTH = 16
HEAD_BYTES = 12  # of an element at most: an identifier of 4 bytes and a size of 8
NO_SIZE = 1 << 62  # of an element whose size is unknown, as in a live recording
_MASKS = tuple((1 << 7 * length) - 1 for length in range(9))  # of the value in a size of so many bytes


def read_element(data: bytes, offset: int) -> tuple[int, int, int]:
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
    return name, content - offset, NO_SIZE if size == mask else size


class Element(NamedTuple):
    name: int
    start: int  # of its content, bytes into the file
    end: int | None  # None if it is unknown


class MatroskaReader:
    """Read a file's elements. `end` is where its segment ends, bytes into the file; None if unknown."""

    def __init__(self, descriptor: int, file_bytes: int) -> None:
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._elements = 0
        self._segment: Element | None = None
        header = self._element(0)
        if header is not None and header.name == HEADER and header.end is not None:
            segment = self._element(header.end)
            self._segment = segment if segment and segment.name == SEGMENT else None
        self.end = self._segment.end if self._segment else None

    def tags(self) -> Iterator[Element]:
        """Yield each tag that FFmpeg reads with the header.

        These are the tags before the clusters, and those that a seek head points at.
        """
        if self._segment is None:
            return
        seen, pointed_at = set(), set()
        for element in self._children(self._segment):
            if element.name == CLUSTER:
                break
            if element.name == SEEK_HEAD:
                for seek in self._children(element):
                    fields = {child.name: self._number(child) for child in self._children(seek)}
                    if fields.get(_SEEK_ID) == TAGS and _SEEK_POSITION in fields:
                        pointed_at.add(self._segment.start + fields[_SEEK_POSITION])
            elif element.name == TAGS:
                seen.add(element.start)
                yield from self._tags_in(element)
        for position in pointed_at:
            tags = self._element(position)
            if tags is not None and tags.name == TAGS and tags.start not in seen:
                yield from self._tags_in(tags)

    def _tags_in(self, parent: Element, depth: int = 0) -> Iterator[Element]:
        for child in self._children(parent):
            if child.name == _SIMPLE_TAG:
                yield child
            if child.name in _OF_TAGS and depth < _MAX_DEPTH:
                yield from self._tags_in(child, depth + 1)

    def _number(self, element: Element) -> int:
        length = 0 if element.end is None else min(8, element.end - element.start)
        return int.from_bytes(os.pread(self._descriptor, length, element.start), "big")

    def _children(self, parent: Element) -> Iterator[Element]:
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

    def _element(self, at: int) -> Element | None:
        head = os.pread(self._descriptor, HEAD_BYTES, at) if 0 <= at < self._file_bytes else b""
        name, head_bytes, size = read_element(head, 0)
        start = at + head_bytes
        return Element(name, start, None if size == NO_SIZE else start + size) if name else None
