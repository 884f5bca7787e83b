"""The frames that evidence of lost data is likely to concern. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from app.video.protocol.packets import MAX_REORDER, Evidence

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
    is_harmless: bool = False  # proven to have cost no frame


class EvidenceList:
    """Evidence in the order of its places, and which frames it concerns."""

    def __init__(self) -> None:
        self._recent: list[Evidence] = []  # at places near or after the frames numbered last
        self._unlocated = 0  # index of the first one whose frames are not known yet
        self._located: list[tuple[int, DamagedPlace]] = []  # (place, what is reported), the first few
        self.total = 0
        self.last_place = -1

    def add(self, evidence: Evidence) -> None:
        """Add evidence, unless it is known from an earlier pass: it is known if it is not after the last."""
        if evidence.place > self.last_place:
            self.last_place = evidence.place
            self._recent.append(evidence)
            self.total += 1

    def is_near(self, first_place: int, last_place: int) -> bool:
        """Whether there is evidence of lost data near those places: decoders reorder frames."""
        at = self._index_of(first_place - MAX_REORDER)
        return at < len(self._recent) and self._recent[at].place <= last_place + MAX_REORDER + 1

    def locate(self, end: int | None, frames: NumberedFrames) -> None:
        """Find the frames concerned by evidence before place `end`, among those numbered last. None: all."""
        upto = len(self._recent) if end is None else self._index_of(end)
        for evidence in self._recent[self._unlocated : upto]:
            if len(self._located) < _KEPT:
                self._located.append((evidence.place, frames.around(evidence)))
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
        self.last_place = min(self.last_place, place - 1)

    def lies_within(self, places: range) -> bool:
        """Whether all evidence lies in `places`."""
        return not self.total or (self._located[0][0] in places and self.last_place in places)

    def report(self, harmless: range) -> tuple[DamagedPlace, ...]:
        """Return the first damaged places; those in `harmless` have cost no frame."""
        return tuple(replace(found, is_harmless=place in harmless) for place, found in self._located)

    def _index_of(self, place: int) -> int:
        return bisect_left(self._recent, place, key=lambda evidence: evidence.place)


@dataclass(frozen=True, slots=True, eq=False)
class NumberedFrames:
    """Frames whose ids and places are known."""

    frame_ids: npt.NDArray[np.int64]  # (n,) ascending
    places: npt.NDArray[np.int64]  # (n,)
    pts: npt.NDArray[np.int64]  # (n,) ticks
    time_base: Fraction

    def followed_by(
        self, frame_ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64], pts: npt.NDArray[np.int64]
    ) -> NumberedFrames:
        """Return those frames, after the last of these: evidence may be between them."""
        last = slice(-6 * MAX_REORDER, None)
        return NumberedFrames(
            np.concatenate((self.frame_ids[last], frame_ids)),
            np.concatenate((self.places[last], places)),
            np.concatenate((self.pts[last], pts)),
            self.time_base,
        )

    def around(self, evidence: Evidence) -> DamagedPlace:
        """Return the report on evidence: the frames next to it in the container's order."""
        order = np.argsort(self.places, kind="stable")
        at = int(np.searchsorted(self.places[order], evidence.place))
        neighbours = self.frame_ids[order[max(0, at - 1) : at + 1]]
        before = int(self.pts[order[max(0, at - 1)]]) if len(order) else None
        return DamagedPlace(
            position=evidence.position,
            seconds=None if before is None else float(before * self.time_base),
            first_frame=int(neighbours.min()) if len(neighbours) else None,
            last_frame=int(neighbours.max()) if len(neighbours) else None,
            reason=evidence.reason,
            observations=evidence.count,
        )
