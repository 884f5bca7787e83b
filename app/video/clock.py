"""The clock of a video's frames: whether it is regular, and how many frames are missing in a gap. Pure.

A container rounds time stamps to its ticks, so a regular clock's steps differ by a tick or two: 33, 33, 34
milliseconds at 30 frames a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_SHARE = 50  # a step may vary by a 50th of itself, and one step in 50 may be odd
_LEAST_TOLERANCE = 2  # ticks
_LEAST_STEPS = 8  # before a clock is trusted
_LEAST_STEPS_AS_CLAIMED = 3  # where they agree with what the container claims
_AGREEING = Fraction(3, 4)  # of a video's first steps, to confirm the claim from the first frame on

Steps = npt.NDArray[np.int64]


class FrameClock:
    """Learn the step from one frame to the next, in ticks, from the steps themselves, in order.

    `nominal_step` is what the container claims. If the steps agree with it, it is used, as it is exact.
    """

    def __init__(self, nominal_step: Fraction | None) -> None:
        self._nominal = nominal_step
        self._regular = 0  # steps
        self._ticks = 0  # all regular steps together
        self._is_confirmed = False  # the claim, by the first steps
        self._surplus = Fraction(0)  # frames that damage seems to have added: a later gap cancels them
        self._odd_undamaged = 0  # odd steps without known damage
        self.odd_steps = 0
        self.smallest: int | None = None  # of all steps, regular or not
        self.largest: int | None = None

    @property
    def is_unbroken(self) -> bool:
        """Whether every step so far was regular: no frame is missing between two others."""
        return self._regular >= _LEAST_STEPS and not self.odd_steps

    @property
    def is_variable(self) -> bool:
        """Whether steps differ by more than the rounding of the container's clock."""
        if self.smallest is None or self.largest is None:
            return False
        return self.largest - self.smallest > max(_LEAST_TOLERANCE, self.smallest // _SHARE)

    def regular_prefix(self, steps: Steps) -> int:
        """Return how many of `steps`, ticks, are regular before the first that is not."""
        step = self._step
        if step is None and len(steps) and steps[0] > 0:
            step = Fraction(int(steps[0]))
        if step is None:
            return 0
        is_odd = np.abs(steps - float(step)) > self._tolerance(step)
        return int(np.argmax(is_odd)) if bool(is_odd.any()) else len(steps)

    def add_regular(self, steps: Steps) -> None:
        """Add the next steps, which are regular."""
        if len(steps):
            self._regular += len(steps)
            self._ticks += int(steps.sum())
            self._note_extremes(int(steps.min()), int(steps.max()))

    def confirm_claim(self, stamps: Iterable[int | None]) -> None:
        """Use the container's claim from the first frame on if most of the first `stamps` agree with it."""
        steps = np.diff(np.unique([stamp for stamp in stamps if stamp is not None]))
        if self._nominal is not None and len(steps) >= _LEAST_STEPS:
            is_as_claimed = np.abs(steps - float(self._nominal)) <= self._tolerance(self._nominal)
            self._is_confirmed = float(is_as_claimed.mean()) >= _AGREEING

    def add_odd(self, step: int, *, is_damaged: bool = False) -> None:
        """Add the next step, which is not regular. Until the clock is trusted, learning starts again."""
        self.odd_steps += self._regular > 0  # else the container's claim is wrong
        self._odd_undamaged += self._regular > 0 and not is_damaged
        self._note_extremes(step, step)
        if self._regular < _LEAST_STEPS and not self._is_confirmed:
            self._nominal = None
            self._regular, self._ticks = (1, step) if step > 0 else (0, 0)

    def missing_in(self, gap: int) -> int | None:
        """Add the next step, at damaged data, and return how many frames are missing in it.

        None if the clock cannot tell: the gap is not a whole number of steps, or the clock is not regular.
        """
        step = self._step
        least = _LEAST_STEPS_AS_CLAIMED if step == self._nominal else _LEAST_STEPS
        is_learnt = self._is_confirmed or self._regular >= least
        if step is None or not is_learnt or self._odd_undamaged * _SHARE > self._regular:
            return None
        exact = gap / step - self._surplus
        count = round(exact)
        drift = 0 if step == self._nominal else Fraction(count, max(1, self._regular))
        tolerance = self._tolerance(step) + float(drift)
        is_whole = abs(exact - count) * step <= tolerance < step / 2
        if count > 0 and is_whole:
            self._surplus = Fraction(0)
            return count - 1
        self._surplus = 1 - exact
        return None

    @property
    def _step(self) -> Fraction | None:
        if not self._regular:
            return self._nominal
        nominal = self._nominal
        if nominal is not None and abs(self._ticks - self._regular * nominal) <= self._tolerance(nominal):
            return nominal
        return Fraction(self._ticks, self._regular)

    def _tolerance(self, step: Fraction) -> float:
        return max(_LEAST_TOLERANCE, float(step) / _SHARE)

    def _note_extremes(self, smallest: int, largest: int) -> None:
        self.smallest = smallest if self.smallest is None else min(smallest, self.smallest)
        self.largest = largest if self.largest is None else max(largest, self.largest)


def likely_stamp(before: int, stamps: Sequence[int | None], step: int) -> int:
    """Return the likely time stamp of the first of `stamps`, of frames in display order near damaged data.

    `before` is the stamp of the frame before them, `step` the ticks from one frame to the next. Damage
    changes stamps, and removes some. Those in the longest ascending row are assumed to be right, and any
    other frame to follow one step after the frame before it. If the row has less than half of the stamps, the
    clock has jumped.
    """
    row = _longest_ascending(before, stamps)
    known = sum(stamp is not None for stamp in stamps)
    first = stamps[0]
    if first is not None and (2 * len(row) < known or 0 in row):
        return first
    if not row:
        return before + step
    next_known = stamps[row[0]]
    assert next_known is not None  # noqa: S101 - the row is of stamps
    return before + max(1, min(step, (next_known - before) // (row[0] + 1)))


def _longest_ascending(above: int, stamps: Sequence[int | None]) -> list[int]:
    """Return the indexes of the longest row of ascending stamps, all of them greater than `above`.

    Source: C. Schensted, Longest increasing and decreasing subsequences, 1961.
    """
    lasts: list[int] = []  # the smallest stamp that ends a row of n + 1
    ends: list[int] = []  # its index
    previous: list[int] = [-1] * len(stamps)  # in the row that each stamp ends
    for at, stamp in enumerate(stamps):
        if stamp is None or stamp <= above:
            continue
        length = bisect_left(lasts, stamp)
        previous[at] = ends[length - 1] if length else -1
        lasts[length : length + 1], ends[length : length + 1] = [stamp], [at]
    row = []
    at = ends[-1] if ends else -1
    while at >= 0:
        row.append(at)
        at = previous[at]
    return row[::-1]
