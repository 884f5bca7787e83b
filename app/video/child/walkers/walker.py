"""What all walkers share: strides, a budget, and a window on the file."""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable

Note = Callable[[int, str], None]  # (position in bytes into the file, reason)

BLOCK_BYTES = 1024 * 1024  # of the file, in memory at a time
MAPPED_BYTES = 4 * BLOCK_BYTES  # of the file, mapped at a time
_STRIDE_BYTES = 1024 * 1024
_MAX_NOTES = 1000  # a file with more breaks is damaged all over
_FREE_ELEMENTS = 500_000
_MIN_MEAN_BYTES = 64  # of an element in real files: Speex in FLV, still pictures in Matroska
_LEAST_READ_BYTES = 512  # more than any head
_MOST_READ_BYTES = 64 * 1024
_NEAR_BYTES = 1024  # after a window: often needed next if elements are small, below about 6 KB
_MADV_POPULATE_READ = 22  # linux/mman.h


class Window:
    """Read a file by position: blocks where elements are small, only their heads where they are large."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read_bytes = _LEAST_READ_BYTES
        self.start = 0  # of `data`, bytes into the file
        self.data = b""

    def load(self, position: int) -> bytes:
        """Move the window to `position` and return its bytes, at least 512 except at the file's end."""
        if 0 <= position - self.start < len(self.data) + _NEAR_BYTES:
            self._read_bytes = min(2 * self._read_bytes, _MOST_READ_BYTES)
        elif self._read_bytes > _LEAST_READ_BYTES:  # shrink slowly: small elements come in groups
            self._read_bytes = max(self._read_bytes * 7 // 8, _LEAST_READ_BYTES)
        self.start = position
        self.data = os.pread(self._descriptor, self._read_bytes, position)
        return self.data

    def get(self, position: int, length: int) -> bytes:
        """Return `length` bytes, at most 512, or fewer at the file's end."""
        offset = position - self.start
        if offset < 0 or offset + length > len(self.data):
            self.load(position)
            offset = 0
        return self.data[offset : offset + length]


def map_block(descriptor: int, start: int, end: int) -> memoryview:
    """Return the file's bytes from `start` to `end`, or fewer at its end, as mapped pages.

    That costs a fourth of a copy, which takes 0.15 s per gigabyte. The pages are read at once, so that a
    failing disk is an error, not a signal. If the file is cut while its pages are in use, the child ends, and
    the next one sees the shorter file.
    """
    first = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        pages = mmap.mmap(descriptor, end - first, access=mmap.ACCESS_READ, offset=first)
        pages.madvise(_MADV_POPULATE_READ)
    except (OSError, ValueError):  # Linux before 5.14, a lack of memory, a file that became shorter
        return memoryview(os.pread(descriptor, end - start, start))
    return memoryview(pages)[start - first :]


class Walker(ABC):
    """Walk element by element, or block by block, in strides that begin at fixed positions.

    Strides do not depend on how `walk_to` is called, so neither do the notes.
    """

    def __init__(self, descriptor: int, file_bytes: int, note: Note) -> None:
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._window = Window(descriptor)
        self._on_note = note
        self._notes = 0
        self._at = 0  # the next element, bytes into the file
        self._elements = 0  # checked so far, for the budget
        self._stride_end = _STRIDE_BYTES
        self._is_lost = False  # looking for the next element after a break
        self._is_over = False

    def walk_to(self, position: int) -> None:
        """Check the file up to byte `position`, in whole strides of 1 MiB. Cheap to call often."""
        while self._stride_end <= min(position, self._file_bytes) and not self._is_over:
            self._stride(self._stride_end)

    def finish(self) -> None:
        """Check the rest, and that the file ends as the container declares."""
        while self._at < self._file_bytes and not self._is_over:
            self._stride(min(self._stride_end, self._file_bytes))
        if not self._is_over:
            self._check_end()
        self._is_over = True

    def _stride(self, end: int) -> None:
        while self._at < end and not self._is_over:
            if self._is_lost:
                self._search()
            else:
                self._follow(end)
        if self._elements > _FREE_ELEMENTS + self._at // _MIN_MEAN_BYTES:
            self._note(self._at, "too many small elements to check")
            self._is_over = True
        self._stride_end = max(end, self._at - self._at % _STRIDE_BYTES) + _STRIDE_BYTES

    @abstractmethod
    def _follow(self, end: int) -> None:
        """Follow the chain until `_at` is `end` or more, or `_is_lost`."""

    @abstractmethod
    def _search(self) -> None:
        """Look through one block from `_at` on for the chain's next element; move `_at` in any case."""

    def _check_end(self) -> None:  # noqa: B027 - most containers have nothing to check there
        """Check what can be known only at the file's end."""

    def _note(self, position: int, reason: str) -> None:
        self._on_note(position, reason)
        self._notes += 1
        self._is_over |= self._notes >= _MAX_NOTES

    def _lose(self, position: int, reason: str, *, search_from: int | None = None) -> None:
        """Note a break at `position`; look for the next element from `search_from` or the next byte on."""
        self._note(position, reason)
        self._at = position + 1 if search_from is None else search_from
        self._is_lost = True

    def _is_element(self, position: int) -> bool:
        """Whether an element is at `position`, according to more than the pattern that `_find` found."""
        del position
        return True

    def _find(self, patterns: tuple[bytes, ...], *, before: int = 0) -> None:
        """Search one block for the first of `patterns` that is part of an element, and go on there.

        The element starts `before` bytes before its pattern.
        """
        block = os.pread(self._descriptor, BLOCK_BYTES, self._at)
        places = {pattern: block.find(pattern, before) for pattern in patterns}
        while places := {pattern: place for pattern, place in places.items() if place >= 0}:
            pattern = min(places, key=places.__getitem__)
            place = places[pattern]
            places[pattern] = block.find(pattern, place + 1)
            self._elements += 1
            if self._is_element(self._at + place - before):
                self._at += place - before
                self._is_lost = False
                return
        longest = max(map(len, patterns))
        is_last = self._at + len(block) >= self._file_bytes or not block
        self._at = self._file_bytes if is_last else self._at + len(block) - longest - before + 1
