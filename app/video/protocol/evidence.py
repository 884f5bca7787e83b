"""Evidence that a container has lost data, and where it was seen.

Whatever reads a container's packets reports what does not fit: the demuxer, and the walkers that check the
container's own chain. Places are counted in packets, so that evidence and frames can be compared: evidence at
place n was seen between packets n - 1 and n. Where frames have to be counted, places are counted in frames.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REORDER = 16  # frames that a decoder may hold back: ITU-T H.264 A.3.1, H.265 A.4.2


@dataclass(frozen=True, slots=True)
class Evidence:
    """One damaged place, as it was seen; `count` observations of which the first gave position and reason."""

    place: int
    position: int | None  # bytes into the file
    count: int
    reason: str
