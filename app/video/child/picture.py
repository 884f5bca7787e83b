"""Turn decoded frames into upright rgb24 pictures of the size that the detector needs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from app.video.child.orientation import UPRIGHT, orientation_of

RgbArray = npt.NDArray[np.uint8]

# Every pixel is the mean of the source's area that it covers: no aliasing, and no ringing, which a detector
# of gradients would take for edges. It is also the fastest of swscale's filters without aliasing.
SCALING = Interpolation.AREA

# YUV pictures are scaled first and then converted: 1080p to 640 × 360 in 0.5 ms instead of 1.4 ms, with
# chroma at half the small picture's resolution.
SCALED_FORMAT = "yuv420p"


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

    def draw(self, frame: VideoFrame, target: RgbArray) -> None:
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
