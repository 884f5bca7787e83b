"""The digest of a file that grows from process to process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rehashes import PySha256

import app.storage.hashing as running_hash_module
from app.storage.hashing import RunningHash, running_hash


@pytest.fixture(autouse=True)
def nothing_is_read_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running_hash_module, "CATCH_UP_BYTES", 0)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "sha256"


def go_on(record: Path, file: Path, before: int) -> RunningHash:
    """As a process does that knows of the file and the record alone."""
    running = running_hash(record, before)
    assert running is not None
    with file.open("rb") as opened:
        running.read_to(opened.fileno(), file.stat().st_size)
    running.save()
    return running


@given(st.lists(st.binary(max_size=300), max_size=8))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_goes_on_where_the_one_before_has_stopped(tmp_path: Path, pieces: list[bytes]):
    record, file = tmp_path / "sha256", tmp_path / "file"
    record.unlink(missing_ok=True)
    file.write_bytes(b"")
    running = go_on(record, file, 0)
    for piece in pieces:
        before = file.stat().st_size
        with file.open("ab") as appended:
            appended.write(piece)
        running = go_on(record, file, before)
    assert running.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_what_came_after_the_last_state_is_read_if_it_is_little(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "file"
    file.write_bytes(b"a" * 1000)
    monkeypatch.setattr(running_hash_module, "CATCH_UP_BYTES", 1000)
    go_on(record, file, 0)
    file.write_bytes(b"a" * 1000 + b"b" * 1000)
    assert go_on(record, file, 2000).hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()
    assert running_hash(record, 3001) is None
    record.unlink()
    assert running_hash(record, 1001) is None


def test_a_state_of_bytes_that_were_cut_off_is_forgotten(record: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"a" * 1000)
    go_on(record, file, 0)
    os.truncate(file, 999)
    assert running_hash(record, 999) is None
    file.write_bytes(b"b" * 1000)
    assert running_hash(record, 1000) is None, "it is of other bytes"


@pytest.mark.parametrize("damage", [lambda _: b"", lambda text: text[:-1], lambda text: text[:-1] + b"?"])
def test_a_state_that_is_not_whole_is_not_believed(record: Path, tmp_path: Path, damage):
    file = tmp_path / "file"
    file.write_bytes(b"a" * 1000)
    go_on(record, file, 0)
    record.write_bytes(damage(record.read_bytes()))
    assert running_hash(record, 1000) is None


def test_a_file_that_ends_early_ends_the_hash(record: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    running = RunningHash(record, PySha256(), 0)
    with file.open("rb") as opened:
        running.read_to(opened.fileno(), 9)
    assert running.hashed_bytes == 3


def test_states_look_as_those_that_lie_on_disks():
    """If this fails after an upgrade, states of another form are on disk: name the new one in _FORMAT."""
    words = "67e6096a85ae67bb72f36e3c3af54fa57f520e518c68059babd9831f19cde05b"
    state = bytes.fromhex(words) + bytes(8) + b"\x03abc" + bytes(60)
    assert PySha256.deserialize(state).finalize() == hashlib.sha256(b"abc").hexdigest()
