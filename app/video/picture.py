"""In the child: a decoded frame becomes an upright rgb24 picture of the size that the detector wants."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

RgbArray = npt.NDArray[np.uint8]

# A triangle filter as wide as the step down: no aliasing, and no ringing at edges as a cubic one has,
# which a detector of gradients would take for edges. FFmpeg's default, bicubic, costs a third more.
SCALING = Interpolation.BILINEAR


def clockwise_rotation(frame: VideoFrame) -> int:
    """Degrees, a multiple of 90, by which the frame must be turned clockwise to stand upright."""
    return round(-frame.rotation / 90) % 4 * 90


def displayed_size(frame: VideoFrame) -> tuple[int, int]:
    """(width, height) in pixels after rotation."""
    if clockwise_rotation(frame) % 180:
        return frame.height, frame.width
    return frame.width, frame.height


class PictureMaker:
    """Scales, converts and turns frames. One for one stream: it keeps the scaler's tables."""

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._height = height
        self._scaler = VideoReformatter()

    def draw(self, frame: VideoFrame, target: RgbArray) -> None:
        """Fill `target`, (height, width, 3) uint8 RGB, with the upright frame."""
        turn = clockwise_rotation(frame)
        width, height = (self._height, self._width) if turn % 180 else (self._width, self._height)
        picture = self._scaler.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=SCALING, threads=1
        )
        plane = picture.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        pixels = rows[:height, : width * 3].reshape(height, width, 3)
        np.copyto(target, np.rot90(pixels, -turn // 90) if turn else pixels)
