"""The frames that evidence of lost data is likely to concern. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from app.video.protocol.packets import MAX_REORDER, Evidence
from app.video.sampling import PtsArray

_KEPT = 100  # entries in a report
_REMEMBERED = 16 * MAX_REORDER  # places before those numbered last: later gaps may be near them


@dataclass(frozen=True, slots=True)
class DamagedPlace:
    """Evidence as it is reported. Unknown fields are None."""

    position: int | None  # bytes into the file
    seconds: float | None  # the container's time stamp of the last frame before it
    first_frame: int | None  # likely range of ids
    last_frame: int | None
    reason: str
    observations: int
    harmless: bool = False  # proven to have cost no frame


class EvidenceList:
    """Evidence in the order of its places, and which frames it concerns."""

    def __init__(self) -> None:
        self._recent: list[Evidence] = []  # at places near or after the frames numbered last
        self._unlocated = 0  # index of the first one whose frames are not known yet
        self._located: list[tuple[int, DamagedPlace]] = []  # (place, what is reported), the first few
        self._last_place = -1
        self.total = 0
        # The frames numbered last: ids ascending, places in the container, time stamps; each (n,).
        self._frame_ids = self._places = self._pts = np.array([], dtype=np.int64)

    def add(self, evidence: Evidence) -> None:
        """Add evidence, unless it is known from an earlier pass: it is known if it is not after the last."""
        if evidence.place > self._last_place:
            self._last_place = evidence.place
            self._recent.append(evidence)
            self.total += 1

    def is_near(self, first_place: int, last_place: int) -> bool:
        """Whether there is evidence of lost data near those places: decoders reorder frames."""
        at = self._index_of(first_place - MAX_REORDER)
        return at < len(self._recent) and self._recent[at].place <= last_place + MAX_REORDER + 1

    def add_frames(self, frame_ids: PtsArray, places: PtsArray, pts: PtsArray) -> None:
        """Add the next frames, (n,) each: their ids, places, and time stamps."""
        last = slice(-6 * MAX_REORDER, None)  # evidence may be between those before and these
        self._frame_ids = np.concatenate((self._frame_ids[last], frame_ids))
        self._places = np.concatenate((self._places[last], places))
        self._pts = np.concatenate((self._pts[last], pts))

    def locate(self, end: int | None, time_base: Fraction) -> None:
        """Find the frames concerned by evidence before place `end`, among those added last. None: all.

        They are the frames next to it in the container's order.
        """
        upto = len(self._recent) if end is None else self._index_of(end)
        order = np.argsort(self._places, kind="stable")
        for evidence in self._recent[self._unlocated : upto][: _KEPT - len(self._located)]:
            at = int(np.searchsorted(self._places[order], evidence.place))
            neighbours = self._frame_ids[order[max(0, at - 1) : at + 1]]
            before = int(self._pts[order[max(0, at - 1)]]) if len(order) else None
            place = DamagedPlace(
                position=evidence.position,
                seconds=None if before is None else float(before * time_base),
                first_frame=int(neighbours.min()) if len(neighbours) else None,
                last_frame=int(neighbours.max()) if len(neighbours) else None,
                reason=evidence.reason,
                observations=evidence.count,
            )
            self._located.append((evidence.place, place))
        self._unlocated = max(self._unlocated, upto)
        if end is not None:
            passed = min(self._unlocated, self._index_of(end - _REMEMBERED))
            del self._recent[:passed]
            self._unlocated -= passed

    def forget_from(self, place: int) -> None:
        """Drop evidence at `place` or later, because another pass begins there."""
        self.total -= len(self._recent) - self._index_of(place)
        del self._recent[self._index_of(place) :]
        self._unlocated = min(self._unlocated, len(self._recent))
        self._located = [(other, found) for other, found in self._located if other < place]
        self._last_place = min(self._last_place, place - 1)

    def lies_within(self, places: range) -> bool:
        """Whether all evidence lies in `places`."""
        return not self.total or (self._located[0][0] in places and self._last_place in places)

    def report(self, harmless: range) -> tuple[DamagedPlace, ...]:
        """Return the first damaged places; those in `harmless` have cost no frame."""
        return tuple(replace(found, harmless=place in harmless) for place, found in self._located)

    def _index_of(self, place: int) -> int:
        return bisect_left(self._recent, place, key=lambda evidence: evidence.place)
