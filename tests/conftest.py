"""Where the tests' data is, what must not be skipped, and how tests share the machine."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("untimed")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test imports onnxruntime; the engine does it by itself
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the engine sets it: idle threads do not spin

CHECKOUT = Path(__file__).resolve().parents[1]
IS_NESTED = "PYTEST_CURRENT_TEST" in os.environ  # a test runs this pytest, and has its turn already
FOLDERS = ("e2e", "contract", "integration", "unit")  # the longest files first: workers end at the same time


def _is_required(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this run, which all of its workers share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


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
    """Mark the tests that ask for a CUDA device: ``-m cuda`` chooses them. Put the files in order."""
    for item in items:
        if isinstance(item, pytest.Function) and "cuda" in item.fixturenames:
            item.add_marker("cuda")
    exclusive = {item.path for item in items if _is_exclusive(item)}
    items.sort(key=lambda item: (item.path in exclusive, _rank(item.path)))


def _rank(file: Path) -> int:
    return next((rank for rank, folder in enumerate(FOLDERS) if folder in file.parts), len(FOLDERS))


def _is_exclusive(item: pytest.Item) -> bool:
    return item.get_closest_marker("exclusive") is not None


def pytest_collection_finish() -> None:
    """Keep garbage collections from looking through everything imported so far: up to a second each."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # waits before the test's time begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run an exclusive test while no other worker runs one; all others side by side."""
    if IS_NESTED:
        return (yield)
    with _turn(fcntl.LOCK_EX if _is_exclusive(item) else fcntl.LOCK_SH):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With ``-n``, give each worker a file at a time, in the order of the collection."""
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - only where xdist is at work

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "shared instance" if _has_shared_instance(CHECKOUT / file) else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@functools.cache
def _has_shared_instance(file: Path) -> bool:
    """Whether its tests use the instance that a worker has for several files; one worker runs them all."""
    return file.parent.name == "e2e" and "shared_instance" in file.read_text()


@contextmanager
def _turn(kind: int) -> Iterator[None]:
    """Hold the lock that all workers share. They queue for it, so that no test overtakes an exclusive one."""
    with Path(__file__).open("rb") as lock, (CHECKOUT / "pyproject.toml").open("rb") as queue:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(lock, kind)
        fcntl.flock(queue, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # forked processes may hold the file open


@pytest.fixture
def cuda() -> str:
    """A CUDA device's name. Skips without one, unless FRAMEBOX_REQUIRE_CUDA says that there must be one."""
    import torch  # noqa: PLC0415 - most tests do without it

    if torch.cuda.is_available():
        return "cuda:0"
    if _is_required("FRAMEBOX_REQUIRE_CUDA"):
        pytest.fail("no CUDA device")
    pytest.skip("no CUDA device; set FRAMEBOX_REQUIRE_CUDA=1 where there must be one")
