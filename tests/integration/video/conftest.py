"""A decoder pool and clips for the tests of video/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clips import ClipFolder, has_ffmpeg
from reading import MIB

from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipFolder:
    if not has_ffmpeg():
        pytest.fail("the ffmpeg command makes the clips of these tests: install ffmpeg")
    return ClipFolder(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=16 * MIB) as pool:
        yield pool
