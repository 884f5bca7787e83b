"""Pictures that never change, on which models are tried."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SCENE_COUNT = 8
NOISE = 8  # as of a camera, in either direction

Picture = npt.NDArray[np.uint8]  # (height, width, 3) RGB
Colour = tuple[int, int, int]
Place = tuple[float, float]

_DARK, _GLASS, _RIM, _SKIN, _HAIR = (25, 25, 25), (60, 70, 80), (150, 150, 150), (205, 160, 130), (40, 30, 20)


def golden_picture(width: int, height: int) -> Tensor:
    """Return (height, width, 3) uint8: a bright shape and noise on a gradient, always the same."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.linspace(0, 160, width).repeat(height, 1)[..., None].repeat(1, 1, 3)
    picture += torch.rand((height, width, 3), generator=generator) * 40
    picture[height // 4 :, width // 3 : width // 2] = torch.tensor([230.0, 60.0, 40.0])
    return picture.to(torch.uint8)


def golden_scenes(width: int, height: int) -> Tensor:
    """Return (SCENE_COUNT, height, width, 3) uint8 RGB: drawn people and cars in the open.

    In them YOLOX-Nano finds 51 boxes with a score over 0.05, people with up to 0.90.
    """
    scenes = []
    for seed in range(SCENE_COUNT):
        random = np.random.default_rng(seed)
        rows = np.linspace(220, 150, height)
        rows[height // 2 :] = np.linspace(110, 80, height - height // 2)
        picture = np.repeat(np.repeat(rows[:, None, None], width, axis=1), 3, axis=2).astype(np.uint8)
        for _ in range(3 + seed % 4):
            pen = _Pen(
                picture,
                x=width * random.uniform(0.08, 0.92),
                y=height * random.uniform(0.75, 0.98),
                size=height * random.uniform(0.25, 0.8),
            )
            bright, dull = _colour(random, 230), _colour(random, 120)
            if random.random() < 0.65:
                pen.person(bright, dull)
            else:
                pen.car(bright)
        noise = random.integers(-NOISE, NOISE + 1, picture.shape)
        noisy = cv2.GaussianBlur(picture, (0, 0), 0.8) + noise
        scenes.append(np.asarray(noisy.clip(0, 255), np.uint8))
    return torch.from_numpy(np.stack(scenes))


def _colour(random: np.random.Generator, brightest: int) -> Colour:
    red, green, blue = (int(value) for value in random.integers(20, brightest, 3))
    return red, green, blue


class _Pen:
    """Draws in units of an object's height, to the right of and above the middle of its foot."""

    def __init__(self, picture: Picture, *, x: float, y: float, size: float) -> None:
        self._picture, self._x, self._y, self._size = picture, x, y, size

    def person(self, shirt: Colour, trousers: Colour) -> None:
        for side in (-1, 1):
            self.line((0.06 * side, 0), (0.04 * side, 0.48), 0.09, trousers)
        self.ellipse((0, 0.64), (0.11, 0.2), shirt)
        for side in (-1, 1):
            self.line((0.1 * side, 0.78), (0.17 * side, 0.45), 0.06, shirt)
        self.ellipse((0, 0.91), (0.06, 0.085), _SKIN)
        self.ellipse((0, 0.95), (0.062, 0.05), _HAIR, first_degree=180)

    def car(self, paint: Colour) -> None:
        self.polygon(paint, (-0.54, 0.09), (-0.54, 0.3), (0.54, 0.3), (0.54, 0.09))
        self.polygon(paint, (-0.36, 0.3), (-0.24, 0.48), (0.21, 0.48), (0.36, 0.3))
        self.polygon(_GLASS, (-0.3, 0.31), (-0.22, 0.45), (-0.03, 0.45), (-0.03, 0.31))
        self.polygon(_GLASS, (0.01, 0.31), (0.01, 0.45), (0.19, 0.45), (0.3, 0.31))
        for wheel in (-0.33, 0.33):
            self.ellipse((wheel, 0.09), (0.1, 0.1), _DARK)
            self.ellipse((wheel, 0.09), (0.05, 0.05), _RIM)

    def line(self, start: Place, end: Place, width: float, colour: Colour) -> None:
        cv2.line(self._picture, self._point(start), self._point(end), colour, self._length(width))

    def ellipse(self, middle: Place, radii: Place, colour: Colour, *, first_degree: int = 0) -> None:
        lengths = (self._length(radii[0]), self._length(radii[1]))
        cv2.ellipse(self._picture, self._point(middle), lengths, 0, first_degree, 360, colour, -1)

    def polygon(self, colour: Colour, *corners: Place) -> None:
        cv2.fillPoly(self._picture, [np.array([self._point(corner) for corner in corners])], colour)

    def _point(self, place: Place) -> tuple[int, int]:
        return int(self._x + place[0] * self._size), int(self._y - place[1] * self._size)

    def _length(self, length: float) -> int:
        return max(1, int(length * self._size))
