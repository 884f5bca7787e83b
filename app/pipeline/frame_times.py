"""When frames are shown: time stamps in seconds. Pure, except for the file from which they are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

SECONDS_DECIMALS = 6

_PTS = struct.Struct("<q")
_READ_BYTES = _PTS.size * 8192


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """The times of a document's frames, in its order, from a file that `document.write_pts` wrote."""

    pts: Path
    time_base: Fraction  # seconds of one tick

    def __iter__(self) -> Iterator[float]:
        """Yield the seconds of each frame, as `pts_seconds` returns them."""
        with self.pts.open("rb") as file:
            while block := file.read(_READ_BYTES):
                for (pts,) in _PTS.iter_unpack(block):
                    yield pts_seconds(pts, self.time_base)


def pts_seconds(pts: int, time_base: Fraction) -> float:
    """Return `pts` in seconds as ffprobe does: from the container's own zero, rounded to 6 decimals.

    Computed in double precision, as there, so that both round alike.
    """
    tick_seconds = time_base.numerator / time_base.denominator
    return round(pts * tick_seconds, SECONDS_DECIMALS) + 0.0  # no negative zero
