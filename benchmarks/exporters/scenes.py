"""Drawn squares, circles and triangles, from seeds: videos to detect them in, and pictures to train on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

LABELS = ("square", "circle", "triangle")
TRAINED_SIDE = (
    192  # pixels: shapes are as large in these pictures as in the videos that a network of 320 sees
)
VIDEOS = {  # name: size, number of frames
    "wide.mp4": ((640, 360), 60),
    "tall.mp4": ((360, 640), 20),
    # Fit an input of 320 × 320 as they are: random weights amplify what two ways to scale differ by.
    "small.mp4": ((320, 180), 20),
    "square.mp4": ((320, 320), 20),  # for those that stretch
}


@dataclass(frozen=True)
class Shape:
    """One drawn object. `outline` is (k, 2), x and y in pixels, in the order in which it is drawn."""

    class_id: int
    colour: tuple[int, int, int]
    outline: np.ndarray

    def box_xyxy(self) -> tuple[float, float, float, float]:
        return (*self.outline.min(axis=0), *self.outline.max(axis=0))


def scene(random: np.random.Generator, size: tuple[int, int], count: int) -> list[Shape]:
    """Return up to `count` shapes within `size`, width and height; none covers much of another."""
    width, height = size
    shapes: list[Shape] = []
    for _ in range(20 * count):
        radius = random.uniform(0.06, 0.2) * min(width, height)
        centre = random.uniform((radius, radius), (width - radius, height - radius))
        if all(np.hypot(*(shape.outline.mean(axis=0) - centre)) > 1.6 * radius + 10 for shape in shapes):
            class_id = int(random.integers(len(LABELS)))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            shapes.append(Shape(class_id, colour, centre + radius * _unit_outline(class_id, random)))
        if len(shapes) == count:
            break
    return shapes


def _unit_outline(class_id: int, random: np.random.Generator) -> np.ndarray:
    corners = {"square": 4, "circle": 24, "triangle": 3}[LABELS[class_id]]
    angles = random.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def draw(shapes: list[Shape], size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Return (height, width, 3) uint8 BGR: the shapes on a smooth noisy ground."""
    width, height = size
    coarse = random.integers(60, 200, (9, 16, 3)).astype(np.uint8)
    picture = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    picture = cv2.add(picture, random.integers(0, 12, (height, width, 3)).astype(np.uint8))
    for shape in shapes:
        cv2.fillPoly(picture, [np.round(shape.outline).astype(np.int32)], shape.colour, cv2.LINE_AA)
    return picture


def frames(size: tuple[int, int], count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `count` frames of moving shapes; a new scene begins every 20 frames."""
    random = np.random.default_rng(seed)
    shapes: list[Shape] = []
    for index in range(count):
        if index % 20 == 0:
            shapes = scene(random, size, 8)
            steps = random.uniform(-3, 3, (len(shapes), 2))
        yield draw(shapes, size, np.random.default_rng((seed, index // 20)))
        shapes = [
            Shape(shape.class_id, shape.colour, shape.outline + step)
            for shape, step in zip(shapes, steps, strict=True)
        ]


def write_videos(folder: Path) -> list[Path]:
    """Write the videos of `VIDEOS` into `folder`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, (size, count)) in enumerate(VIDEOS.items()):
        if not (folder / name).exists():
            _encode(folder / name, size, frames(size, count, seed))
    return [folder / name for name in VIDEOS]


def _encode(path: Path, size: tuple[int, int], pictures: Iterator[np.ndarray]) -> None:
    source = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}", "-r", "25", "-i", "-"]
    encoder = ["-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p", "-g", "20", str(path)]
    raw = b"".join(picture.tobytes() for picture in pictures)
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *source, *encoder], input=raw, check=True)


def padded_frames(side: int) -> torch.Tensor:
    """Return a frame of each scene of the videos in a grey square: (n, 3, side, side), RGB in [0, 1]."""
    squares = []
    for seed, (size, count) in enumerate(VIDEOS.values()):
        for frame in list(frames(size, count, seed))[::20]:
            scale = side / max(size)
            small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            square = np.full((side, side, 3), 114, np.uint8)
            top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
            square[top : top + small.shape[0], left : left + small.shape[1]] = small
            squares.append(torch.from_numpy(square[:, :, ::-1].copy()))
    return torch.stack(squares).permute(0, 3, 1, 2) / 255


def write_dataset(folder: Path, count: int = 240) -> Path:
    """Write pictures and their boxes as Ultralytics reads them; return the path of its yaml file."""
    random = np.random.default_rng(7)
    side = TRAINED_SIDE
    for part, number in (("train", count), ("val", 16)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            shapes = scene(random, (side, side), int(random.integers(1, 7)))
            cv2.imwrite(str(folder / "images" / part / f"{index}.png"), draw(shapes, (side, side), random))
            lines = [f"{shape.class_id} {_centre_size(shape, side)}\n" for shape in shapes]
            (folder / "labels" / part / f"{index}.txt").write_text("".join(lines))
    data = folder / "data.yaml"
    settings = {"path": str(folder), "train": "images/train", "val": "images/val"}
    data.write_text(json.dumps(settings | {"names": dict(enumerate(LABELS))}))  # JSON is YAML
    return data


def _centre_size(shape: Shape, side: int) -> str:
    """Return centre and size of the box as fractions."""
    left, top, right, bottom = np.array(shape.box_xyxy()) / side
    return f"{(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}"
