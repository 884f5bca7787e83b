"""Evidence that a container has lost data, and where it was seen.

The demuxer and the walkers, which check the container's own chain, report what does not fit. Places are
counted in packets, to compare evidence with frames: evidence at place n was seen between packets n - 1 and n.
If frames have to be counted, places are counted in frames.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REORDER = 16  # frames that a decoder may hold back: ITU-T H.264 A.3.1, H.265 A.4.2


@dataclass(frozen=True, slots=True)
class Evidence:
    """One damaged place: `count` observations, with the position and reason of the first."""

    place: int
    position: int | None  # bytes into the file
    count: int
    reason: str
