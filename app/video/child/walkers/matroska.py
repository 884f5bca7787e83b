"""Matroska and WebM: elements in a segment, in its clusters, and in their groups of blocks.

Sources: RFC 8794 (EBML), sections 4 to 6; RFC 9559 (Matroska), section 5. Unknown elements are skipped, as
RFC 8794 asks of readers. A byte that starts no identifier breaks the chain, and so does an element that ends
behind the one that holds it. In a cluster an unknown element must lead to a known one.
"""

from __future__ import annotations

from app.video.child.matroska_header import (
    CLUSTER,
    HEAD_BYTES,
    HEADER,
    NO_SIZE,
    SEEK_HEAD,
    SEGMENT,
    TAGS,
    read_element,
)
from app.video.child.walkers.walker import Note, Walker

_INFO, _TRACKS, _CUES, _CHAPTERS, _ATTACHMENTS = 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1043A770, 0x1941A469
_VOID, _CHECKSUM = 0xEC, 0xBF
_GROUP, _BLOCK, _SIMPLE_BLOCK = 0xA0, 0xA1, 0xA3
_TIME, _POSITION, _SIZE_BEFORE, _SILENT = 0xE7, 0xA7, 0xAB, 0x5854
_LEVEL_0 = frozenset((HEADER, SEGMENT))
_LEVEL_1 = frozenset((CLUSTER, SEEK_HEAD, _INFO, _TRACKS, _CUES, _CHAPTERS, TAGS, _ATTACHMENTS))
_OUTER = _LEVEL_0 | _LEVEL_1
_OF_CLUSTERS = frozenset((_GROUP, _BLOCK, _SIMPLE_BLOCK))
_FIRST_IN_CLUSTER = _OF_CLUSTERS | {_VOID, _CHECKSUM, _TIME, _POSITION, _SIZE_BEFORE, _SILENT}
_MASTERS = frozenset((SEGMENT, CLUSTER, _GROUP))  # that are walked through
_MAY_LACK_SIZE = frozenset((SEGMENT, CLUSTER))
_DURATION, _REFERENCE, _PADDING, _ADDITIONS = 0x9B, 0xFB, 0x75A2, 0x75A1
_USUAL = frozenset((_BLOCK, _SIMPLE_BLOCK, _TIME, _DURATION, _REFERENCE, _PADDING, _ADDITIONS))
_OTHERS_IN_CLUSTER = frozenset((0xAF, 0xA2, 0xFA, 0xFD, 0xA4, 0x8E, 0xC8))  # as in RFC 9559, 5.1.3
_KNOWN = _OUTER | _FIRST_IN_CLUSTER | _USUAL | _OTHERS_IN_CLUSTER
# By a size's first byte: how many it has; 0 where it has too many, or where it may stand for an unknown size.
_SIZE_BYTES = tuple(9 - first.bit_length() if first & first + 1 else 0 for first in range(256))
# By that: what a size with its marker lacks to the bytes of an element whose identifier has one byte.
_BESIDE_SIZE = (NO_SIZE, *(1 + count - (1 << 7 * count) for count in range(1, 9)))
_NOWHERE = 1 << 63  # the end of an element of unknown size
_CUT = "the file ends inside an element"
_NO_ELEMENT = "bytes that are no element"


class MatroskaWalker(Walker):
    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._parents = [(0, _NOWHERE)]  # identifiers and ends, the outermost first: 0 is the file
        self._declared_end = 0  # of the segment, bytes into the file

    def _follow(self, end: int) -> None:
        window = self._window
        data, start, at = window.data, window.start, self._at
        parent_end, blocks_end = self._ends()
        elements, room = 0, len(data) - HEAD_BYTES
        while at < end:
            offset = at - start
            if not 0 <= offset <= room:
                data, start, offset = window.load(at), at, 0
                room = len(data) - HEAD_BYTES
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
            self._step(*read_element(data, offset))
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
        is_cluster = parent in (CLUSTER, _GROUP)
        return parent_end, min(parent_end, self._file_bytes - HEAD_BYTES) if is_cluster else 0

    def _step(self, name: int, head_bytes: int, size: int) -> None:
        """Move into the element at `_at`, over it, or out of the one that holds it; or lose the chain."""
        at = self._at
        parent, parent_end = self._parents[-1]
        if parent_end == _NOWHERE and name in (_OUTER if parent == CLUSTER else _LEVEL_0) and parent:
            self._parents.pop()
            return
        if not parent and name not in _LEVEL_0 and name != _VOID:
            if name in _LEVEL_1:
                self._note(at, "a segment that is longer than it says")
            self._at = self._file_bytes  # what else follows the segment is of no interest
            return
        fault = self._fault(name, head_bytes, size)
        if fault:
            self._lose(at, fault, search_from=at if name == CLUSTER else at + 1)
        elif name in _MASTERS:
            end = _NOWHERE if size == NO_SIZE else at + head_bytes + size
            self._parents.append((name, end))
            self._at = at + head_bytes
            if name == SEGMENT and end != _NOWHERE:
                self._declared_end = max(self._declared_end, end)
        else:
            self._at = at + head_bytes + size

    def _fault(self, name: int, head_bytes: int, size: int) -> str | None:
        """Return what is wrong with the element at `_at`, if anything is."""
        parent, parent_end = self._parents[-1]
        end = self._at + head_bytes + size
        if not name:
            return _CUT if self._file_bytes - self._at < HEAD_BYTES else _NO_ELEMENT
        if size == NO_SIZE:
            return None if name in _MAY_LACK_SIZE else "an element without a size"
        if end > min(parent_end, _NOWHERE if name in _MASTERS else self._file_bytes):
            is_cut = parent_end > self._file_bytes
            return _CUT if is_cut else "an element that ends behind the one that holds it"
        if parent == SEGMENT:
            return "a block outside a cluster" if name in _OF_CLUSTERS else None
        if name in _OUTER and parent:
            return "a cluster that is shorter than it says"
        must_lead_to_known = parent and name not in _KNOWN and end not in (parent_end, self._file_bytes)
        after = read_element(self._window.get(end, HEAD_BYTES), 0)[0] if must_lead_to_known else _VOID
        return None if after in _KNOWN else _NO_ELEMENT

    def _search(self) -> None:
        self._find((CLUSTER.to_bytes(4, "big"),), self._is_element)
        self._parents = [(0, _NOWHERE), (SEGMENT, _NOWHERE)]

    def _is_element(self, position: int) -> bool:
        name, head_bytes, size = read_element(self._window.get(position, HEAD_BYTES), 0)
        child, _, child_size = read_element(self._window.get(position + head_bytes, HEAD_BYTES), 0)
        return name == CLUSTER and child in _FIRST_IN_CLUSTER and child_size <= size

    def _check_end(self) -> None:
        if self._declared_end > self._file_bytes:
            self._note(self._file_bytes, "the file ends before its segment does")
