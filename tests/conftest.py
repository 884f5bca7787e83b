"""Where the tests' data is, and what must not be skipped."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("untimed")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test imports onnxruntime; the engine does it by itself

CHECKOUT = Path(__file__).resolve().parents[1]


def _is_required(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real videos, damaged files and models: FRAMEBOX_TEST_DATA, or beside the checkout.

    Skips where it is absent, unless FRAMEBOX_REQUIRE_TEST_DATA says that it must be there.
    """
    return _present_folder(_test_data_folder())


@pytest.fixture(scope="session")
def failing_videos() -> Path:
    """The folder of small videos that were once read wrongly, beside the test data. Skips as `test_data`."""
    return _present_folder(_test_data_folder().parent / "failing" / "videos")


@pytest.fixture(scope="session")
def failing_damage() -> Path:
    """The folder of small damaged videos with numbered frames, beside the test data. Skips as `test_data`."""
    return _present_folder(_test_data_folder().parent / "failing" / "damage")


def _test_data_folder() -> Path:
    return Path(os.environ.get("FRAMEBOX_TEST_DATA", CHECKOUT.parent / "shared" / "data"))


def _present_folder(folder: Path) -> Path:
    if not folder.is_dir():
        reason = f"no test data at {folder}; set FRAMEBOX_TEST_DATA"
        if _is_required("FRAMEBOX_REQUIRE_TEST_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def people_video(test_data: Path) -> Path:
    """1394 frames, 768 × 432, H.264: people cross a room one after another."""
    return test_data / "videos" / "one-by-one-person-detection.mp4"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for a CUDA device: ``-m cuda`` chooses them."""
    for item in items:
        if isinstance(item, pytest.Function) and "cuda" in item.fixturenames:
            item.add_marker("cuda")


@pytest.fixture
def cuda() -> str:
    """A CUDA device's name. Skips without one, unless FRAMEBOX_REQUIRE_CUDA says that there must be one."""
    import torch  # noqa: PLC0415 - most tests do without it

    if torch.cuda.is_available():
        return "cuda:0"
    if _is_required("FRAMEBOX_REQUIRE_CUDA"):
        pytest.fail("no CUDA device")
    pytest.skip("no CUDA device; set FRAMEBOX_REQUIRE_CUDA=1 where there must be one")
