"""A display matrix becomes a mirror and a turn, as the ffmpeg command applies it."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.video.child.picture import UPRIGHT, Orientation, orientation_by_matrix

ONE = 1 << 16
PICTURE = np.arange(6).reshape(2, 3)
FFMPEG = {  # by a, b, c, d of the matrix: what ffmpeg's filters make of PICTURE
    (1, 0, 0, 1): PICTURE,
    (-1, 0, 0, 1): PICTURE[:, ::-1],  # hflip
    (1, 0, 0, -1): PICTURE[::-1],  # vflip
    (-1, 0, 0, -1): PICTURE[::-1, ::-1],
    (0, 1, -1, 0): np.rot90(PICTURE, -1),  # clock
    (0, -1, 1, 0): np.rot90(PICTURE),  # cclock
    (0, 1, 1, 0): PICTURE.T,  # cclock_flip
    (0, -1, -1, 0): PICTURE[::-1, ::-1].T,  # clock_flip
}


def matrix(a: float, b: float, c: float, d: float) -> bytes:
    numbers = (a, b, 0, c, d, 0, 0, 0)
    return struct.pack("=9i", *(round(number * ONE) for number in numbers), 1 << 30)


def turned(degrees: float) -> bytes:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return matrix(cosine, sine, -sine, cosine)


def applied(orientation: Orientation) -> np.ndarray:
    picture = PICTURE[:, ::-1] if orientation.mirrored else PICTURE
    return np.rot90(picture, -(orientation.rotation_degrees // 90))


@pytest.mark.parametrize("scale", [1, 0.25, 30_000])
@pytest.mark.parametrize("numbers", FFMPEG)
def test_the_eight_orientations_are_ffmpegs(numbers: tuple[int, int, int, int], scale: float) -> None:
    a, b, c, d = numbers
    orientation = orientation_by_matrix(matrix(a * scale, b * scale, c * scale, d * scale))
    assert np.array_equal(applied(orientation), FFMPEG[numbers])
    assert orientation.is_exact
    assert orientation.swaps_sides == (not a)


@pytest.mark.parametrize("data", [bytes(36), b"", bytes(35), matrix(1, 0, 1, 0), matrix(0, 1, 0, 1)])
def test_a_matrix_that_makes_no_sense_turns_nothing(data: bytes) -> None:
    assert orientation_by_matrix(data) == UPRIGHT


@pytest.mark.parametrize(
    ("degrees", "expected"), [(45, 45), (-45, 315), (89, 89), (89.6, 90), (1, 0), (-1, 359), (2, 2), (0.4, 0)]
)
def test_other_angles_are_rounded_to_degrees_as_ffmpeg_does(degrees: float, expected: int) -> None:
    orientation = orientation_by_matrix(turned(degrees))
    assert orientation == Orientation(expected)
    assert orientation.is_exact == (expected % 90 == 0)


@given(st.binary(min_size=36, max_size=36))
def test_any_matrix_is_some_orientation(data: bytes) -> None:
    orientation = orientation_by_matrix(data)
    assert 0 <= orientation.rotation_degrees < 360
    assert orientation.is_exact or not orientation.mirrored
