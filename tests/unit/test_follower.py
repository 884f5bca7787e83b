"""Bodies are hashed while nginx writes them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from app.storage import bodies as bodies_module
from app.storage.bodies import BodyFolders, note_of
from app.storage.data_folder import DataFolder
from app.storage.follower import BodyFollower

REQUEST = "ab" + "0" * 30
DATA = os.urandom(5_000_001)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    (folder.bodies / "ab").mkdir(mode=0o700)
    return folder


@pytest.fixture
def bodies(folder: DataFolder) -> BodyFolders:
    return BodyFolders(folder)


@pytest.fixture
def follower(folder: DataFolder, bodies: BodyFolders) -> BodyFollower:
    return BodyFollower(bodies, lambda: ["ab"], folder.lock("follower"))


@pytest.fixture
def body(folder: DataFolder) -> Path:
    return folder.bodies / "ab" / "0000000042"


def _refuse_to_read(*_: object) -> None:
    raise AssertionError("the body was read once more")


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _use_up(follower: BodyFollower) -> None:
    while follower.step():
        pass


def test_a_body_that_was_followed_is_not_read_again(folder, bodies, follower, body, monkeypatch):
    monkeypatch.setattr(bodies_module, "file_digests", _refuse_to_read)
    for start in range(0, len(DATA), 1_500_000):
        _append(body, DATA[start : start + 1_500_000])
        follower.look()
        _use_up(follower)
    with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
        opened.move_to(folder.incoming / "taken")
        _use_up(follower)
        assert opened.sha256 == hashlib.sha256(DATA).hexdigest()
    assert not [*folder.bodies.glob("*/*")]


def test_who_takes_a_body_waits_for_what_is_left_to_hash(folder, bodies, follower, body, monkeypatch):
    monkeypatch.setattr(bodies_module, "file_digests", _refuse_to_read)
    body.write_bytes(DATA)
    follower.look()
    with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
        opened.move_to(folder.incoming / "taken")
        found: list[str] = []
        waiting = threading.Thread(target=lambda: found.append(opened.sha256), name="waiting")
        waiting.start()
        _use_up(follower)
        waiting.join(timeout=10)
    assert found == [hashlib.sha256(DATA).hexdigest()]


def test_a_body_that_nobody_followed_is_read(bodies, body):
    body.write_bytes(DATA)
    with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
        assert opened.sha256 == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("text", [b"", b"0" * 64 + b" 1 2 3", b"nonsense", b"\xff" * 300])
def test_the_note_of_a_follower_that_died_is_not_believed(bodies, body, text: bytes):
    body.write_bytes(DATA)
    note_of(body).write_bytes(text)
    with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
        assert opened.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_follower_that_hangs_is_waited_for_no_longer_than_it_may_take(bodies, body, monkeypatch):
    monkeypatch.setattr(bodies_module, "_FOLLOWER_SECONDS", 0.0)
    monkeypatch.setattr(bodies_module, "_FOLLOWER_BYTES_PER_SECOND", 1 << 40)
    body.write_bytes(DATA)
    with note_of(body).open("wb") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
            assert opened.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_body_whose_client_went_leaves_no_note(folder, follower, body):
    body.write_bytes(DATA)
    follower.look()
    assert note_of(body).exists()
    body.unlink()
    _use_up(follower)
    assert not [*folder.bodies.glob("*/*")]


def test_a_second_digest_is_found_with_the_first_in_one_pass(bodies, follower, body):
    body.write_bytes(DATA)
    follower.look()
    with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
        found = opened.digests(("sha512",))
        assert found["sha512"] == hashlib.sha512(DATA).digest()
        assert opened.sha256 == hashlib.sha256(DATA).hexdigest()


def test_notes_are_no_bodies_and_are_left_by_a_clean_up_while_they_are_held(
    folder, bodies, follower, body, monkeypatch
):
    monkeypatch.setattr(bodies_module, "SETTLED_SECONDS", 0.0)
    with body.open("wb") as file:  # as nginx holds it
        file.write(DATA)
        file.flush()
        follower.look()
        assert bodies.sizes("ab") == [len(DATA)]
        assert bodies.remove_leftovers() == 0
    body.unlink()
    note_of(body).write_bytes(b"left")
    follower.step()
    note_of(body).write_bytes(b"left")
    assert bodies.remove_leftovers() == 1
    assert not [*folder.bodies.glob("*/*")]


def test_one_of_several_workers_follows(folder, bodies, body):
    followers = [BodyFollower(bodies, lambda: ["ab"], folder.lock("follower")) for _ in range(2)]
    threads = [follower.start() for follower in followers]
    try:
        body.write_bytes(DATA)
        for _ in range(1000):
            if note_of(body).exists():
                break
            time.sleep(0.01)
        with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
            assert opened.note is not None
            opened.move_to(folder.incoming / "taken")
            assert opened.sha256 == hashlib.sha256(DATA).hexdigest()
    finally:
        for follower, thread in zip(followers, threads, strict=True):
            follower.stop()
            thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)


def test_the_note_of_a_follower_that_died_is_taken_over(folder, bodies, follower, body, monkeypatch):
    monkeypatch.setattr(bodies_module, "file_digests", _refuse_to_read)
    body.write_bytes(DATA)
    note_of(body).write_bytes(b"0" * 500)
    follower.look()
    with bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened:
        opened.move_to(folder.incoming / "taken")
        _use_up(follower)
        assert opened.sha256 == hashlib.sha256(DATA).hexdigest()
