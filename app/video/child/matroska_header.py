"""Where a Matroska or WebM file ends and how many tags it has, read before FFmpeg sees it.

Sources: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

EBML_HEADER = b"\x1aE\xdf\xa3"  # how a file begins
_SEGMENT, _CLUSTER = b"\x18S\x80g", b"\x1fC\xb6u"
_SEEK_HEAD, _SEEK_ID, _SEEK_POSITION = b"\x11M\x9bt", b"S\xab", b"S\xac"
_TAGS, _TAG, _SIMPLE_TAG = b"\x12T\xc3g", b"ss", b"g\xc8"
_OF_TAGS = (_TAGS, _TAG, _SIMPLE_TAG)
_MAX_ELEMENTS = 100_000  # read in search of tags; the rest is left to FFmpeg and its limits
_MAX_DEPTH = 16


class Element(NamedTuple):
    name: bytes
    start: int  # of its content, bytes into the file
    end: int | None  # None if it is unknown, as in a live recording


class MatroskaReader:
    """Read a file's elements. `end` is where its segment ends, bytes into the file; None if unknown."""

    def __init__(self, descriptor: int, file_bytes: int) -> None:
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._elements = 0
        self._segment: Element | None = None
        header = self._element(0)
        if header is not None and header.name == EBML_HEADER and header.end is not None:
            segment = self._element(header.end)
            self._segment = segment if segment and segment.name == _SEGMENT else None
        self.end = self._segment.end if self._segment else None

    def count_tags(self, on_tag: Callable[[], None]) -> None:
        """Call `on_tag` for each tag that FFmpeg reads with the header.

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
                    fields = {child.name: child for child in self._children(seek)}
                    is_seek = {_SEEK_ID, _SEEK_POSITION} <= fields.keys()
                    if is_seek and self._content(fields[_SEEK_ID]) == _TAGS:
                        position = int.from_bytes(self._content(fields[_SEEK_POSITION]), "big")
                        pointed_at.add(self._segment.start + position)
            elif element.name == _TAGS:
                seen.add(element.start)
                self._count(element, on_tag)
        for position in pointed_at:
            tags = self._element(position)
            if tags is not None and tags.name == _TAGS and tags.start not in seen:
                self._count(tags, on_tag)

    def _count(self, parent: Element, on_tag: Callable[[], None], depth: int = 0) -> None:
        for child in self._children(parent):
            if child.name == _SIMPLE_TAG:
                on_tag()
            if child.name in _OF_TAGS and depth < _MAX_DEPTH:
                self._count(child, on_tag, depth + 1)

    def _content(self, element: Element) -> bytes:
        length = 0 if element.end is None else min(8, element.end - element.start)
        return os.pread(self._descriptor, length, element.start)

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
        head = os.pread(self._descriptor, 12, at) if 0 <= at < self._file_bytes else b""
        name_bytes = 9 - head[0].bit_length() if head else 9
        if name_bytes > 4 or len(head) <= name_bytes or not head[name_bytes]:
            return None
        size_bytes = 9 - head[name_bytes].bit_length()
        start = name_bytes + size_bytes
        largest = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(head[name_bytes:start], "big") & largest
        return Element(head[:name_bytes], at + start, None if size == largest else at + start + size)
