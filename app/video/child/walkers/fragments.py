"""Fragmented MP4: consecutive boxes, and numbered fragments.

Source: ISO/IEC 14496-12, 4.2 (boxes), 8.8.4 to 8.8.8 (movie fragments). An MP4 without fragments lists its
samples in tables, and needs no walker.
"""

from __future__ import annotations

from collections.abc import Iterator

from app.video.child.headers import BOX_HEAD_BYTES, Box, box_at
from app.video.child.walkers.walker import Note, Walker, Window

_MAX_BOXES_BEFORE = 1000  # the first fragment
_MAX_TRACKS = 64  # whose numbers are kept
_RESTARTS = frozenset((b"ftyp", b"styp", b"moov", b"sidx"))  # numbers may start again after these
_FIELDS_OF_TRUN = (0x1, 0x4)  # flags of fields that a trun box has once, 4 bytes each
_FIELDS_OF_SAMPLES = (0x100, 0x200, 0x400, 0x800)  # flags of fields that it has for every sample


class FragmentsWalker(Walker):
    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        super().__init__(descriptor, file_bytes, note)
        self._number: int | None = None  # of the last fragment
        self._numbers: dict[int, int] = {}  # of each track's last fragment: some writers count per track

    def _follow(self, end: int) -> None:
        while self._at < end and not self._is_over:
            at = self._at
            self._elements += 1
            box = _box_at(self._window, at, self._file_bytes)
            if box is None or box.end > self._file_bytes:
                is_cut = box is not None or self._file_bytes - at < 8
                reason = "the file ends inside a box" if is_cut else "bytes that are no box"
                self._lose(at, reason)
                return
            if box.kind == b"moof":
                self._check_fragment(box)
            elif box.kind in _RESTARTS:
                self._number = None
                self._numbers.clear()
            self._at = box.end

    def _check_fragment(self, fragment: Box) -> None:
        number = track = 0
        for box in self._children(fragment):
            if box.kind == b"mfhd":
                number = self._read_number(box.start + 4)
            for inner in self._children(box) if box.kind == b"traf" else ():
                if inner.kind == b"tfhd":
                    track = track or self._read_number(inner.start + 4)
                elif inner.kind == b"trun":
                    flags = self._read_number(inner.start) & 0xFFFFFF
                    once = sum(4 for flag in _FIELDS_OF_TRUN if flags & flag)
                    each = sum(4 for flag in _FIELDS_OF_SAMPLES if flags & flag)
                    if inner.end - inner.start != 8 + once + each * self._read_number(inner.start + 4):
                        self._note(inner.start, "a fragment's table of samples does not fill its box")
        before, before_of_track = self._number, self._numbers.get(track, -1)
        if before is not None and number > before + 1 and number > before_of_track + 1:
            self._note(self._at, f"fragments are missing: number {number} comes after {before}")
        self._number = number
        if len(self._numbers) < _MAX_TRACKS or track in self._numbers:
            self._numbers[track] = number

    def _children(self, parent: Box) -> Iterator[Box]:
        """Yield the boxes in `parent`; note it if they do not fill it."""
        at = parent.start
        while at < parent.end and not self._is_over:
            self._elements += 1
            box = _box_at(self._window, at, parent.end)
            if box is None or box.end > parent.end:
                self._note(at, "a fragment's boxes do not fill it")
                return
            yield box
            at = box.end

    def _read_number(self, position: int) -> int:
        return int.from_bytes(self._window.get(position, 4), "big")

    def _search(self) -> None:
        self._find((b"mfhd",), before=12)

    def _is_element(self, position: int) -> bool:
        return self._window.get(position + 4, 4) == b"moof"


def is_fragmented(descriptor: int, file_bytes: int) -> bool:
    """Whether the file has a fragment, or its movie box declares that fragments follow."""
    window = Window(descriptor)
    for box in _boxes(window, 0, file_bytes):
        inner = _boxes(window, box.start, box.end) if box.kind == b"moov" else ()
        if box.kind == b"moof" or any(child.kind == b"mvex" for child in inner):
            return True
    return False


def _boxes(window: Window, start: int, end: int) -> Iterator[Box]:
    at = start
    for _ in range(_MAX_BOXES_BEFORE):
        box = _box_at(window, at, end) if at < end else None
        if box is None:
            return
        yield box
        at = box.end


def _box_at(window: Window, at: int, parent_end: int) -> Box | None:
    box = box_at(window.get(at, BOX_HEAD_BYTES), at, parent_end)
    is_kind = box is not None and all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in box.kind)
    return box if is_kind else None
