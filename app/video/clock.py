"""The clock of a video's frames: regular or not, and how many frames a gap on it lacks. Pure.

A container rounds time stamps to its ticks, so a regular clock's steps differ by a tick or two: 33, 33, 34
milliseconds at 30 frames a second.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

_SHARE = 50  # a step is regular within a 50th of itself, and a clock with one odd step in 50
_LEAST_TOLERANCE = 2  # ticks
_LEAST_STEPS = 8  # before a clock is trusted
_LEAST_STEPS_AS_CLAIMED = 3  # where they agree with what the container claims

Steps = npt.NDArray[np.int64]


class FrameClock:
    """Learns the step from one frame to the next, in ticks, from the steps themselves, taken in order.

    `nominal_step` is what the container claims. Where the steps agree with it, it is used: it is exact.
    """

    def __init__(self, nominal_step: Fraction | None) -> None:
        self._nominal = nominal_step
        self._regular = 0  # steps
        self._ticks = 0  # all regular steps together
        self._has_gone_back = False  # the last step was one back: the next one leads back to the clock
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
        """Take the next steps, which are regular."""
        if len(steps):
            self._regular += len(steps)
            self._ticks += int(steps.sum())
            self._note_extremes(int(steps.min()), int(steps.max()))

    def add_odd(self, step: int) -> None:
        """Take the next step, which is not regular. Until the clock is trusted, learning begins anew."""
        self.odd_steps += self._regular > 0  # else it is the container's claim that is wrong
        self._has_gone_back = step <= 0
        self._note_extremes(step, step)
        if self._regular < _LEAST_STEPS:
            self._nominal = None
            self._regular, self._ticks = (1, step) if step > 0 else (0, 0)

    def missing_in(self, gap: int) -> int:
        """Return how many frames a gap of so many ticks lacks: 0 if it is no whole number of steps.

        Also 0 where the clock is not regular enough to tell.
        """
        step = self._step
        least = _LEAST_STEPS_AS_CLAIMED if step == self._nominal else _LEAST_STEPS
        is_trusted = self._regular >= least and self.odd_steps * _SHARE <= self._regular
        if step is None or self._has_gone_back or not is_trusted:
            return 0
        count = round(gap / step)
        drift = 0 if step == self._nominal else Fraction(count, self._regular)
        tolerance = self._tolerance(step) + float(drift)
        is_whole = abs(gap - count * step) <= tolerance < step / 2
        return count - 1 if count > 1 and is_whole else 0

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
