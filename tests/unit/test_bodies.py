"""Bodies that nginx writes by itself: which one a request may name, and what is a leftover."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import IncompleteBody
from app.storage import bodies as bodies_module
from app.storage.bodies import BodyFault, BodyFolders, folder_name
from app.storage.data_folder import DataFolder, new_job_id
from app.storage.space import SpaceLedger
from app.storage.spool import Spool

REQUEST = "ab" + "0" * 30
DATA = os.urandom(3_000_001)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    for name in ("ab", "cd"):
        (folder.bodies / name).mkdir(mode=0o700)
    return folder


@pytest.fixture
def bodies(folder: DataFolder) -> BodyFolders:
    return BodyFolders(folder)


@pytest.fixture
def body(folder: DataFolder) -> Path:
    path = folder.bodies / "ab" / "0000000042"
    path.write_bytes(DATA)
    return path


def _name(bodies: BodyFolders, named: str, length: int = len(DATA)) -> None:
    with bodies.open(named, request_id=REQUEST, expected_bytes=length):
        pass


def test_a_body_is_taken_with_its_size_and_digest(folder, bodies, body):
    space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)
    spool, job_id = Spool(folder, space), new_job_id()
    with (
        bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened,
        spool.take(job_id, key=REQUEST, body=opened) as upload,
    ):
        assert (upload.size_bytes, upload.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
        upload.finish()
        spool.publish(upload)
    assert folder.video(job_id).read_bytes() == DATA
    assert not body.exists()
    assert not [*folder.incoming.iterdir()]


def test_a_body_that_makes_no_job_is_removed(folder, bodies, body):
    space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)
    with (
        bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as opened,
        Spool(folder, space).take(new_job_id(), key=REQUEST, body=opened),
    ):
        pass
    assert not body.exists()
    assert not [*folder.incoming.iterdir()]


def test_a_body_is_taken_once(folder, bodies, body):
    space = SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)
    spool, first = Spool(folder, space), new_job_id()
    with (
        bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as one,
        bodies.open(str(body), request_id=REQUEST, expected_bytes=len(DATA)) as other,
        spool.take(first, key=REQUEST, body=one) as upload,
    ):
        with pytest.raises(IncompleteBody), spool.take(new_job_id(), key=REQUEST, body=other):
            pass
        spool.publish(upload)
    assert folder.video(first).read_bytes() == DATA


def _link(body: Path) -> str:
    body.with_name("0000000043").symlink_to(body)
    return str(body.with_name("0000000043"))


def _hard_link(body: Path) -> str:
    os.link(body, body.with_name("0000000043"))
    return str(body.with_name("0000000043"))


def _folder(body: Path) -> str:
    body.with_name("0000000043").mkdir()
    return str(body.with_name("0000000043"))


def _pipe(body: Path) -> str:
    os.mkfifo(body.with_name("0000000043"))
    return str(body.with_name("0000000043"))


def _of_another_request(body: Path) -> str:
    return str(body.rename(body.parent.parent / "cd" / body.name))


def _through_a_linked_folder(body: Path) -> str:
    body.parent.rename(body.parent.parent / "ef")
    body.parent.symlink_to(body.parent.parent / "ef")
    return str(body)


@pytest.mark.parametrize(
    "forge",
    [
        _link,
        _hard_link,
        _folder,
        _pipe,
        _of_another_request,
        _through_a_linked_folder,
        lambda _body: "",
        lambda body: body.name,
        lambda _body: "/etc/passwd",
        lambda body: f"{body}/",
        lambda body: f"{body}\n",
        lambda body: str(body.parent / ".." / "ab" / body.name),
        lambda body: str(body.rename(body.with_name("video"))),
        lambda body: str(body.rename(body.with_name("٠000000042"))),
    ],
)
def test_what_is_no_body_of_the_request_is_not_taken(bodies, body, forge: Callable[[Path], str]):
    with pytest.raises(BodyFault):
        _name(bodies, forge(body))


@pytest.mark.parametrize("length", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_body_of_another_length_is_not_taken(bodies, body, length: int):
    with pytest.raises(BodyFault):
        _name(bodies, str(body), length)


def test_a_body_that_is_gone_is_its_clients_doing(bodies, body):
    body.unlink()
    with pytest.raises(IncompleteBody):
        _name(bodies, str(body))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not_taken(bodies, body):
    os.chown(body, 12345, -1)
    with pytest.raises(BodyFault):
        _name(bodies, str(body))


def _make_old(path: Path) -> None:
    os.utime(path, (0, 0))


def test_a_leftover_is_removed_and_a_body_that_another_process_writes_is_not(bodies, body):
    script = "import sys; f = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"
    other = body.with_name("0000000099")
    other.write_bytes(b"left")
    command = [sys.executable, "-c", script, str(body)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        for path in (body, other):
            _make_old(path)
        assert bodies.remove_leftovers() == 1
        assert (body.exists(), other.exists()) == (True, False)
        writer.kill()
        writer.wait(timeout=10)
    assert bodies.remove_leftovers() == 1
    assert not body.exists()


def test_a_file_just_made_is_no_leftover_yet(bodies, body, monkeypatch):
    assert bodies.remove_leftovers() == 0
    monkeypatch.setattr(bodies_module, "SETTLED_SECONDS", 0.0)
    assert bodies.remove_leftovers() == 1


def test_when_nginx_starts_all_bodies_are_leftovers(folder, bodies, body):
    (folder.bodies / "cd" / "0000000001").touch()
    (folder.bodies / bodies_module.NO_BODY_FOLDER).mkdir()
    (folder.bodies / bodies_module.NO_BODY_FOLDER / "0000000002").touch()
    bodies.remove_all()
    assert not [*folder.bodies.glob("*/*")]


def test_sizes_are_those_of_the_folder_alone(folder, bodies, body):
    (folder.bodies / "cd" / "0000000001").write_bytes(b"x")
    assert bodies.sizes(folder_name(REQUEST)) == [len(DATA)]
    assert bodies.sizes("ff") == []
