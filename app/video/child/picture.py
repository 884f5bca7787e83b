"""Turn decoded frames into upright rgb24 pictures of the size that the detector needs.

A display matrix may turn a picture, mirror it, or both. ffmpeg applies the eight orientations that map pixels
to pixels exactly, and any other angle by interpolation, within the frame's own size, where it ignores mirrors
(fftools/ffmpeg_filter.c, autorotate; libavutil/display.h for the matrix).
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

# Every pixel is the mean of the source's area that it covers: no aliasing, and no ringing, which a detector
# of gradients would take for edges. It is also the fastest of swscale's filters without aliasing.
SCALING = Interpolation.AREA

# YUV pictures are scaled first and then converted: 1080p to 640 × 360 in 0.5 ms instead of 1.4 ms, with
# chroma at half the small picture's resolution.
SCALED_FORMAT = "yuv420p"

_MATRIX = struct.Struct("=9i")
_KNOWN_MATRICES = 16  # a stream has one, as a rule


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to show a stored picture upright: swap left and right if `mirrored`, then turn it."""

    rotation_degrees: int = 0  # clockwise, [0, 360)
    mirrored: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether pixels become pixels. Other angles keep the frame's size and lose its corners."""
        return self.rotation_degrees % 90 == 0

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


def displayed_size(frame: VideoFrame) -> tuple[int, int]:
    """Return (width, height) in pixels after rotation."""
    if orientation_of(frame).swaps_sides:
        return frame.height, frame.width
    return frame.width, frame.height


class _Filter:
    """One filter of FFmpeg's, rebuilt when the kind of frames or the arguments change."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._graph: Graph | None = None
        self._made_for: tuple[int, int, str, str] | None = None

    def of(self, frame: VideoFrame, arguments: str) -> VideoFrame:
        wanted = (frame.width, frame.height, frame.format.name, arguments)
        if self._graph is None or wanted != self._made_for:
            graph = Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            graph.link_nodes(source, graph.add(self._name, arguments), graph.add("buffersink")).configure()
            self._graph, self._made_for = graph, wanted
        self._graph.vpush(frame)
        return self._graph.vpull()


class PictureMaker:
    """Scale, convert and turn the frames of one stream. It keeps the scaler's tables."""

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._height = height
        self._scaler = VideoReformatter()
        self._converter = VideoReformatter()
        self._fields_joined = _Filter("setfield")
        self._rotated = _Filter("rotate")

    def draw(self, frame: VideoFrame, target: npt.NDArray[np.uint8]) -> None:
        """Fill `target`, (height, width, 3) uint8 RGB, with the upright frame."""
        if frame.interlaced_frame:
            # Like the ffmpeg command, scale whole frames: swscale would treat the two fields as two pictures.
            frame = self._fields_joined.of(frame, "prog")
        orientation = orientation_of(frame)
        if not orientation.is_exact:
            frame = self._rotated.of(frame, f"{orientation.rotation_degrees}*PI/180")
            orientation = UPRIGHT
        width, height = self._width, self._height
        if orientation.swaps_sides:
            width, height = height, width
        is_smaller = width < frame.width or height < frame.height
        if is_smaller and not frame.format.is_rgb and len(frame.format.components) >= 3:
            frame = self._scaler.reformat(
                frame, width=width, height=height, format=SCALED_FORMAT, interpolation=SCALING, threads=1
            )
        picture = self._converter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=SCALING, threads=1
        )
        plane = picture.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        pixels = rows[:height, : width * 3].reshape(height, width, 3)
        if orientation.mirrored:
            pixels = pixels[:, ::-1]
        np.copyto(target, np.rot90(pixels, -(orientation.rotation_degrees // 90)))
