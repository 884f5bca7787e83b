"""A GIF of one picture is told from an animation before FFmpeg sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.video.child.headers import read_header
from app.video.protocol.limits import VideoLimits

SCREEN = b"GIF89a" + bytes((4, 0, 4, 0, 0x91, 0, 0)) + bytes(12)
LOOPS = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
CONTROL = b"\x21\xf9\x04\0\x0a\0\0\0"
IMAGE = b"\x2c" + bytes((0, 0, 0, 0, 4, 0, 4, 0, 0x80)) + bytes(6) + b"\x02\x03abc\x02de\0"
END = b"\x3b"


def is_still(folder: Path, data: bytes) -> bool:
    path = folder / "picture.gif"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_header(descriptor, VideoLimits()).is_still_image
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (SCREEN + END, True),
        (SCREEN + IMAGE + END, True),
        (SCREEN + LOOPS + CONTROL + IMAGE + CONTROL + END, True),
        (SCREEN + IMAGE + IMAGE + END, False),
        (SCREEN + LOOPS + (CONTROL + IMAGE) * 2, False),
        (SCREEN + IMAGE + CONTROL[:3], True),
        (SCREEN + b"\x21\xfe" + b"\xff" + bytes(255) + b"\x01\x2c\0" + IMAGE * 2, False),
    ],
)
def test_pictures_are_counted_past_all_other_blocks(data: bytes, expected: bool, tmp_path: Path) -> None:
    assert is_still(tmp_path, data) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_their_end(tmp_path: Path, data: bytes) -> None:
    is_still(tmp_path, SCREEN + data)
