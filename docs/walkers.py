"""Draws the README's clip and its picture: two figures that walk through a hall. Nothing is filmed.

    python docs/walkers.py clip walkers.mp4
    python docs/walkers.py picture walkers.mp4 answer.json docs/frames.jpg

`picture` draws the boxes of an answer of Framebox over some frames of the clip.
"""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Point = tuple[float, float]

WIDTH, HEIGHT = 640, 360
FRAME_RATE = 12
FRAME_COUNT = 96
STEP_SECONDS = 1.1
SCALE = 2  # drawn so much larger, then scaled down: smooth edges
SHOWN_FRAMES = (18, 36, 60, 84)

JACKETS = ((70, 62, 48), (46, 52, 92))  # BGR
TROUSERS = ((52, 46, 40), (40, 40, 44))
SKIN = (140, 168, 208)
DARK = (28, 28, 30)  # shoes and hair


def draw_frame(number: int) -> Image:
    """Frame `number` of the clip: (360, 640, 3) uint8, BGR."""
    picture = cv2.resize(_hall(), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_LINEAR)
    seconds = number / FRAME_RATE
    _walker(picture, left=-30 + 84 * seconds, ground=330, tall=208, phase=seconds / STEP_SECONDS, look=0)
    _walker(
        picture, left=655 - 76 * seconds, ground=302, tall=172, phase=0.3 + seconds / STEP_SECONDS, look=1
    )
    return cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def _hall() -> Image:
    rows = np.linspace(222, 196, HEIGHT, dtype=np.float32)[:, None, None]
    picture = np.repeat(np.repeat(rows, WIDTH, axis=1), 3, axis=2)
    picture[236:] = np.linspace(150, 178, HEIGHT - 236, dtype=np.float32)[:, None, None]
    picture = picture.astype(np.uint8)
    for left in range(40, WIDTH, 150):
        cv2.rectangle(picture, (left, 40), (left + 84, 130), (236, 226, 214), -1)
        cv2.rectangle(picture, (left, 40), (left + 84, 130), (182, 178, 172), 2)
    noise = np.random.default_rng(7).normal(0, 2.0, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _walker(picture: Image, *, left: float, ground: float, tall: float, phase: float, look: int) -> None:
    """Draw a person `tall` pixels high who stands on the line `ground`; `phase` counts double steps."""
    swing = math.sin(2 * math.pi * phase)
    hip, neck = (left, ground - 0.48 * tall), (left, ground - 0.82 * tall)
    far, near = (-swing, swing)
    _arm(picture, neck, tall, -far, JACKETS[look])
    _leg(picture, hip, ground, tall, far, TROUSERS[look])
    _leg(picture, hip, ground, tall, near, TROUSERS[look])
    trunk = [
        (-0.085, neck[1]),
        (0.085, neck[1]),
        (0.075, hip[1] + 0.03 * tall),
        (-0.075, hip[1] + 0.03 * tall),
    ]
    _fill(picture, [(left + x * tall, y) for x, y in trunk], JACKETS[look])
    _limb(picture, [(left - 0.06 * tall, neck[1]), (left + 0.06 * tall, neck[1])], 0.06 * tall, JACKETS[look])
    _limb(picture, [neck, (left, neck[1] - 0.05 * tall)], 0.06 * tall, SKIN)
    _disc(picture, (left, ground - 0.925 * tall), 0.065 * tall, SKIN)
    _disc(picture, (left, ground - 0.945 * tall), 0.060 * tall, DARK)
    _arm(picture, neck, tall, -near, tuple(int(0.8 * value) for value in JACKETS[look]))


def _leg(
    picture: Image, hip: Point, ground: float, tall: float, swing: float, colour: tuple[int, ...]
) -> None:
    knee = (hip[0] + 0.07 * tall * swing + 0.012 * tall, hip[1] + 0.23 * tall)
    foot = (hip[0] + 0.13 * tall * swing, ground - 0.02 * tall - 0.02 * tall * max(0.0, -swing))
    _limb(picture, [hip, knee, foot], 0.085 * tall, colour)
    _limb(picture, [foot, (foot[0] + 0.04 * tall, foot[1])], 0.045 * tall, DARK)


def _arm(picture: Image, neck: Point, tall: float, swing: float, colour: tuple[int, ...]) -> None:
    shoulder = (neck[0], neck[1] + 0.02 * tall)
    elbow = (shoulder[0] + 0.06 * tall * swing, shoulder[1] + 0.17 * tall)
    hand = (shoulder[0] + 0.12 * tall * swing, shoulder[1] + 0.31 * tall)
    _limb(picture, [shoulder, elbow, hand], 0.055 * tall, colour)
    _disc(picture, hand, 0.026 * tall, SKIN)


def _limb(picture: Image, joints: list[Point], thick: float, colour: tuple[int, ...]) -> None:
    for start, end in pairwise(joints):
        cv2.line(picture, _drawn(start), _drawn(end), colour, round(thick * SCALE), cv2.LINE_AA)


def _fill(picture: Image, corners: list[Point], colour: tuple[int, ...]) -> None:
    cv2.fillPoly(picture, [np.array([_drawn(corner) for corner in corners])], colour, cv2.LINE_AA)


def _disc(picture: Image, centre: Point, radius: float, colour: tuple[int, ...]) -> None:
    cv2.circle(picture, _drawn(centre), round(radius * SCALE), colour, -1, cv2.LINE_AA)


def _drawn(point: Point) -> tuple[int, int]:
    return round(point[0] * SCALE), round(point[1] * SCALE)


def write_clip(path: Path) -> None:
    """Write the clip as H.264 in MP4."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "23", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FRAME_RATE)
        for number in range(FRAME_COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_frame(number), format="bgr24")))
        container.mux(stream.encode(None))


def write_picture(clip: Path, answer: Path, picture: Path) -> None:
    """Write some frames of the clip, two by two, with the boxes of the answer."""
    boxes = dict(json.loads(answer.read_bytes()))
    with av.open(clip) as container:
        frames = {
            number: frame.to_ndarray(format="bgr24")
            for number, frame in enumerate(container.decode(video=0))
            if number in SHOWN_FRAMES
        }
    shown = [_with_boxes(frames[number], number, boxes[number]) for number in SHOWN_FRAMES]
    rows = [np.hstack(shown[:2]), np.hstack(shown[2:])]
    cv2.imwrite(str(picture), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 82])


def _with_boxes(frame: Image, number: int, boxes: list[dict[str, object]]) -> Image:
    picture = frame.copy()
    for box in boxes:
        x_min, y_min, x_max, y_max = (round(value) for value in box["box"])  # type: ignore[attr-defined]
        cv2.rectangle(picture, (x_min, y_min), (x_max, y_max), (40, 40, 220), 2)
        text = f"{box['label']} {box['score']}"
        cv2.putText(
            picture,
            text,
            (x_min, y_min - 6),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.45,
            (40, 40, 220),
            1,
            cv2.LINE_AA,
        )
    cv2.putText(
        picture, f"frame {number}", (10, 350), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA
    )
    return picture


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["clip", path]:
            write_clip(Path(path))
        case ["picture", clip, answer, path]:
            write_picture(Path(clip), Path(answer), Path(path))
        case _:
            sys.exit(__doc__)
