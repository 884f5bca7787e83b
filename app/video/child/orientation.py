"""How a frame must be turned for display, as the ffmpeg command turns it.

A display matrix may turn a picture, mirror it, or both. ffmpeg applies the eight orientations that map pixels
to pixels exactly, and any other angle by interpolation, within the frame's own size, where it ignores mirrors
(fftools/ffmpeg_filter.c, autorotate; libavutil/display.h for the matrix).
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass

from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

_MATRIX = struct.Struct("=9i")
_RIGHT_ANGLES = (0, 90, 180, 270)
_KNOWN_MATRICES = 16  # a stream has one, as a rule


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to show a stored picture upright: swap left and right if `mirrored`, then turn it."""

    rotation_degrees: int = 0  # clockwise, [0, 360)
    mirrored: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether pixels become pixels. Other angles keep the frame's size and lose its corners."""
        return self.rotation_degrees in _RIGHT_ANGLES

    @property
    def swaps_sides(self) -> bool:
        """Whether the width as stored is the height as displayed."""
        return self.rotation_degrees in (90, 270)


UPRIGHT = Orientation()


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return the frame's orientation.

    If the frame has side data that PyAV has no name for, as in stereoscopic HEVC, PyAV shows only the angle
    of the matrix: the frame is then treated as not mirrored.
    """
    try:
        # `frame.side_data` would refer to the frame that refers to it: memory that waits for the collector.
        side_data = SideDataContainer(frame)  # type: ignore[call-arg] # PyAV's stub lacks the argument
    except ValueError:
        return _turned_by(-frame.rotation)
    if not len(side_data) or SideDataType.DISPLAYMATRIX not in side_data:
        return UPRIGHT
    return orientation_by_matrix(bytes(side_data[SideDataType.DISPLAYMATRIX]))


@functools.lru_cache(maxsize=_KNOWN_MATRICES)
def orientation_by_matrix(matrix: bytes) -> Orientation:
    """Return what the nine numbers of a display matrix stand for; upright if they make no sense."""
    if len(matrix) != _MATRIX.size:
        return UPRIGHT
    a, b, _, c, d, *_ = _MATRIX.unpack(matrix)
    scale_x, scale_y = math.hypot(a, c), math.hypot(b, d)
    if not scale_x or not scale_y:
        return UPRIGHT
    degrees = math.degrees(math.atan2(b / scale_y, a / scale_x))
    turn = _turned_by(int(math.copysign(math.floor(abs(degrees) + 0.5), degrees)))  # as C's round()
    rotation = turn.rotation_degrees
    is_mirrored = {0: d < 0, 90: c > 0, 180: d >= 0, 270: c < 0}.get(rotation, False)
    return Orientation((rotation + 180) % 360, mirrored=True) if is_mirrored else turn


def _turned_by(degrees: int) -> Orientation:
    """Return a clockwise turn. ffmpeg ignores one of a single degree; a wrong angle is ignored, too."""
    if abs(degrees) > 360:
        return UPRIGHT
    rotation = degrees % 360
    return UPRIGHT if rotation == 1 else Orientation(rotation)
