"""Promises of disk space."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import InsufficientStorage
from app.storage.space import SpaceLedger, free_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _ledger(folder: Path, *, free: int, keep: int = 0, clock: Clock | None = None) -> SpaceLedger:
    return SpaceLedger(
        folder / "space.sqlite3",
        folder,
        min_free_bytes=keep,
        measure=lambda _: free,
        clock=clock or Clock(),
    )


def test_two_uploads_are_not_promised_the_same_bytes(tmp_path: Path):
    ledger = _ledger(tmp_path, free=100)
    ledger.reserve("a", 60, seconds=10)
    with pytest.raises(InsufficientStorage) as caught:
        ledger.reserve("b", 60, seconds=10)
    assert caught.value.extensions == {"needed_bytes": 60, "available_bytes": 40}


def test_of_many_at_once_only_as_many_succeed_as_there_is_room(tmp_path: Path):
    def try_to_reserve(number: int) -> bool:
        try:
            _ledger(tmp_path, free=100).reserve(f"upload {number}", 30, seconds=10)
        except InsufficientStorage:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(try_to_reserve, range(20))) == 3


def test_the_minimum_stays_free(tmp_path: Path):
    ledger = _ledger(tmp_path, free=100, keep=50)
    ledger.reserve("a", 50, seconds=10)
    with pytest.raises(InsufficientStorage):
        ledger.reserve("b", 1, seconds=10)


def test_a_second_promise_to_the_same_key_replaces_the_first(tmp_path: Path):
    ledger = _ledger(tmp_path, free=100)
    ledger.reserve("a", 90, seconds=10)
    ledger.reserve("a", 95, seconds=10)
    assert ledger.available_bytes() == 5


def test_a_promise_ends_by_release_or_by_time(tmp_path: Path):
    clock = Clock()
    ledger = _ledger(tmp_path, free=100, clock=clock)
    ledger.reserve("a", 10, seconds=10)
    ledger.reserve("b", 20, seconds=10)
    ledger.release("a")
    assert ledger.available_bytes() == 80
    clock.now += 11
    assert ledger.available_bytes() == 100


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path):
    assert 0 < free_bytes(tmp_path) < 1 << 60


class Bodies:
    """Folders of growing files, by name."""

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = {}

    def __call__(self, name: str) -> list[int]:
        return self.sizes.get(name, [])


def _ledger_of_bodies(folder: Path, bodies: Bodies, clock: Clock) -> SpaceLedger:
    """On a disk of 1000 bytes, of which the bodies take theirs."""

    def measure(_: Path) -> int:
        return 1000 - sum(map(sum, bodies.sizes.values()))

    database = folder / "space.sqlite3"
    return SpaceLedger(database, folder, min_free_bytes=0, body_sizes=bodies, measure=measure, clock=clock)


def test_the_promise_for_a_body_holds_as_long_as_its_file_grows(tmp_path: Path):
    bodies, clock = Bodies(), Clock()
    ledger = _ledger_of_bodies(tmp_path, bodies, clock)
    ledger.reserve("a", 600, seconds=10, body_folder="aa")
    assert ledger.available_bytes() == 400
    for written in (1, 300, 600):
        bodies.sizes["aa"] = [written]
        clock.now += 3600.0
        assert ledger.available_bytes() == 400
    ledger.release("a")
    assert ledger.available_bytes() == 400


def test_the_promise_for_a_body_whose_client_went_ends(tmp_path: Path):
    bodies, clock = Bodies(), Clock()
    ledger = _ledger_of_bodies(tmp_path, bodies, clock)
    ledger.reserve("a", 600, seconds=10, body_folder="aa")
    bodies.sizes["aa"] = [100]
    clock.now += 3600.0
    assert ledger.available_bytes() == 400
    bodies.sizes["aa"] = []
    assert ledger.available_bytes() == 1000


def test_of_a_folders_promises_the_largest_hold_for_its_files(tmp_path: Path):
    """Whose file it is cannot be told: too much is kept free rather than too little."""
    bodies, clock = Bodies(), Clock()
    ledger = _ledger_of_bodies(tmp_path, bodies, clock)
    for key, size in (("a", 50), ("b", 300), ("c", 200)):
        ledger.reserve(key, size, seconds=10, body_folder="aa")
    clock.now += 3600.0
    bodies.sizes["aa"] = [40, 20]
    assert ledger.available_bytes() == 1000 - 60 - (300 + 200 - 60)
    bodies.sizes["aa"] = [40]
    assert ledger.available_bytes() == 1000 - 40 - (300 - 40)


def test_a_file_without_a_promise_lessens_no_other(tmp_path: Path):
    bodies, clock = Bodies(), Clock()
    ledger = _ledger_of_bodies(tmp_path, bodies, clock)
    bodies.sizes["aa"] = [200, 10]
    ledger.reserve("a", 300, seconds=10, body_folder="aa")
    assert ledger.available_bytes() == 1000 - 210 - (300 - 10)


def test_what_a_body_folder_promises_counts_against_other_uploads(tmp_path: Path):
    bodies, clock = Bodies(), Clock()
    ledger = _ledger_of_bodies(tmp_path, bodies, clock)
    ledger.reserve("a", 600, seconds=10, body_folder="aa")
    with pytest.raises(InsufficientStorage):
        ledger.reserve("b", 600, seconds=10, body_folder="bb")
    with pytest.raises(InsufficientStorage):
        ledger.reserve("c", 600, seconds=10)
    ledger.reserve("d", 400, seconds=10)
