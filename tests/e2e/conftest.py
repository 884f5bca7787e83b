from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance, make_clip
from memory_group import MemoryGroup


@pytest.fixture(scope="session", autouse=True)
def _measured(run_folder: Path) -> None:
    """Measure the built-in models once a run."""
    Instance.measured = run_folder / "measured"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 frames, 320 × 240, H.264 with B-frames, ten keyframes."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=500)


@pytest.fixture(scope="session")
def shared_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance for all tests that leave it as it was: segments of 100 frames, two decoders."""
    with Instance(tmp_path_factory.mktemp("shared") / "data", segment_frames=100) as instance:
        yield instance


@pytest.fixture
def memory_group(request: pytest.FixtureRequest) -> Iterator[MemoryGroup]:
    """A cgroup with the limit that the test gives as parameter. Skips where none can be made."""
    try:
        group = MemoryGroup.create(f"framebox-test-{os.getpid()}", limit_bytes=request.param)
    except OSError as error:
        reason = f"no memory cgroup can be made: {error.strerror}"
        if os.environ.get("FRAMEBOX_REQUIRE_CGROUP", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    yield group
    group.remove()
