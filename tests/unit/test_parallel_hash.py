"""A digest that a thread of its own finds while an upload is written."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from app.storage.hashing import ParallelHash, file_digests

MIB = 1024 * 1024


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "upload-hash"]


@pytest.mark.parametrize("pieces", [0, 1, 15, 16, 17, 64])
def test_the_digest_is_that_of_all_pieces_in_order(pieces: int):
    data = [os.urandom(256 * 1024) for _ in range(pieces)]
    parallel = ParallelHash()
    for piece in data:
        parallel.update(memoryview(piece))
    assert parallel.hexdigest() == hashlib.sha256(b"".join(data)).hexdigest()
    assert not _threads()


def test_more_may_come_after_a_digest():
    parallel, data = ParallelHash(), os.urandom(9 * MIB)
    parallel.update(data)
    parallel.update(data)
    assert parallel.hexdigest() == hashlib.sha256(data * 2).hexdigest()
    parallel.update(data)
    assert parallel.hexdigest() == hashlib.sha256(data * 3).hexdigest()


def test_a_short_upload_costs_no_thread_and_one_that_is_given_up_leaves_none():
    parallel = ParallelHash()
    parallel.update(bytes(MIB))
    assert not _threads()
    for _ in range(8):
        parallel.update(bytes(MIB))
    assert _threads()
    parallel.close()
    assert not _threads()


def test_files_are_read_once_for_several_digests(tmp_path):
    data = os.urandom(3 * MIB + 1)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        found = file_digests(file.fileno(), ("sha256", "sha512"))
    assert found == {"sha256": hashlib.sha256(data).digest(), "sha512": hashlib.sha512(data).digest()}
