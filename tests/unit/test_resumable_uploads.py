"""Resumable uploads on disk: the size is the offset, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app.storage.joining as joining_module
import app.storage.uploads as uploads_module
from app.errors import (
    BodyTooLarge,
    ChecksumMismatch,
    InsufficientStorage,
    TooManyUploads,
    UploadGone,
    UploadLocked,
    UploadNotFound,
    UploadUnfinished,
)
from app.jobs.job import OWNER
from app.storage.data_folder import DataFolder
from app.storage.descriptors import copy_bytes
from app.storage.hashing import Checksum
from app.storage.joining import NotAPart, join_uploads, joined_id
from app.storage.space import SpaceLedger
from app.storage.upload_writer import BLOCK_BYTES, UploadWriter
from app.storage.uploads import About, UploadLimits, Uploads

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.late_seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.late_seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def space(folder: DataFolder) -> SpaceLedger:
    return SpaceLedger(folder.space_ledger, folder.root, min_free_bytes=0)


@pytest.fixture
def uploads(folder: DataFolder, space: SpaceLedger, clock: Clock) -> Uploads:
    return Uploads(
        folder.uploads, space, UploadLimits(keep_seconds=HOUR, max_open=5), clock=clock, boot_id=lambda: "1"
    )


def ignore() -> None:
    """No other request comes."""


def append(uploads: Uploads, upload_id: str, *pieces: bytes, checksum: Checksum | None = None) -> int:
    with uploads.hold(upload_id, owner=OWNER) as held:
        held.append(pieces, checksum, on_takeover=ignore)
        return held.facts().offset_bytes


def read(folder: DataFolder, upload_id: str) -> bytes:
    return ((folder.uploads / upload_id) / "video").read_bytes()


def sha1(data: bytes) -> Checksum:
    return Checksum("sha1", hashlib.sha1(data, usedforsecurity=False).digest())


def test_what_was_appended_counts(uploads: Uploads, folder: DataFolder):
    upload_id = uploads.create(About(OWNER, 9), key="k")
    assert append(uploads, upload_id, b"abc", b"de") == 5
    assert not uploads.look(upload_id, owner=OWNER).is_whole
    assert append(uploads, upload_id, b"fghi") == 9
    assert uploads.look(upload_id, owner=OWNER).is_whole
    assert read(folder, upload_id) == b"abcdefghi"


@pytest.fixture
def nothing_is_read_for_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.hashing.CATCH_UP_BYTES", 0)


def sha256(uploads: Uploads, upload_id: str) -> str | None:
    with uploads.hold(upload_id, owner=OWNER) as held:
        return held.sha256()


@pytest.mark.usefixtures("nothing_is_read_for_its_digest")
def test_the_digest_of_what_came_in_pieces_is_known(uploads: Uploads):
    upload_id, pieces = (
        uploads.create(About(OWNER, 20_009), key="k"),
        [b"abc", os.urandom(20_000), b"", b"defghi"],
    )
    for piece in pieces[:2]:
        append(uploads, upload_id, piece)
    with pytest.raises(ChecksumMismatch), uploads.hold(upload_id, owner=OWNER) as held:
        held.append([b"zzz"], sha1(b"other"), on_takeover=ignore)
    append(uploads, upload_id, *pieces[2:], checksum=sha1(b"defghi"))
    assert sha256(uploads, upload_id) == hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.mark.usefixtures("nothing_is_read_for_its_digest")
def test_an_upload_whose_digest_was_not_kept_up_with_has_none(uploads: Uploads, folder: DataFolder):
    upload_id = uploads.create(About(OWNER, 9), key="k")
    append(uploads, upload_id, b"abc")
    ((folder.uploads / upload_id) / "sha256").unlink()
    append(uploads, upload_id, b"defghi")
    assert sha256(uploads, upload_id) is None


def test_a_process_that_is_killed_takes_nothing_of_the_digest_with_it(
    uploads: Uploads, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
):
    """Of what was not synced yet, and of bytes with a checksum, which do not count."""
    upload_id, data = uploads.create(About(OWNER, 100_000), key="k"), os.urandom(100_000)
    with monkeypatch.context() as patched:
        patched.setattr(UploadWriter, "finish", lambda _: None)
        append(uploads, upload_id, data[:50_000])
    written = uploads.look(upload_id, owner=OWNER).offset_bytes
    assert 45_000 < written < 50_000
    ((folder.uploads / upload_id) / "unchecked").write_text(str(written))
    with ((folder.uploads / upload_id) / "video").open("ab") as video:
        video.write(b"xyz")
    append(uploads, upload_id, data[written:])
    assert sha256(uploads, upload_id) == hashlib.sha256(data).hexdigest()


def test_room_for_the_length_is_taken_at_once(uploads: Uploads, folder: DataFolder):
    upload_id = uploads.create(About(OWNER, 10_000_000), key="k")
    status = ((folder.uploads / upload_id) / "video").stat()
    assert status.st_size == 0
    assert status.st_blocks * 512 >= 10_000_000


def test_an_upload_for_which_there_is_no_room_is_refused_and_leaves_nothing(
    uploads: Uploads, folder: DataFolder
):
    with pytest.raises(InsufficientStorage):
        uploads.create(About(OWNER, 2**62), key="k")
    assert not [*folder.uploads.iterdir()]


def test_there_may_be_so_many_uploads(uploads: Uploads):
    upload_ids = [uploads.create(About(OWNER, 0), key="k") for _ in range(5)]
    with pytest.raises(TooManyUploads):
        uploads.create(About(OWNER, 0), key="k")
    with uploads.hold(upload_ids[0], owner=OWNER) as held:
        held.spend(job_id=held.id)
    uploads.create(About(OWNER, 0), key="k")


def test_bytes_that_came_before_a_broken_connection_count(uploads: Uploads, folder: DataFolder):
    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise ConnectionResetError

    upload_id = uploads.create(About(OWNER, 9), key="k")
    with pytest.raises(ConnectionResetError), uploads.hold(upload_id, owner=OWNER) as held:
        held.append(broken(), None, on_takeover=ignore)
    assert uploads.look(upload_id, owner=OWNER).offset_bytes == 3
    assert read(folder, upload_id) == b"abc"


@pytest.mark.parametrize("broken", [False, True])
def test_a_body_with_another_checksum_is_dropped_whole(uploads: Uploads, folder: DataFolder, broken: bool):
    def pieces() -> Iterator[bytes]:
        yield b"xy"
        if broken:
            raise ConnectionResetError

    upload_id = uploads.create(About(OWNER, 9), key="k")
    append(uploads, upload_id, b"abc", checksum=sha1(b"abc"))
    with (
        pytest.raises(ConnectionResetError if broken else ChecksumMismatch),
        uploads.hold(upload_id, owner=OWNER) as held,
    ):
        held.append(pieces(), sha1(b"zz"), on_takeover=ignore)
    assert uploads.look(upload_id, owner=OWNER).offset_bytes == 3
    assert append(uploads, upload_id, b"defghi") == 9
    assert read(folder, upload_id) == b"abcdefghi"


def test_bytes_whose_checksum_was_never_compared_do_not_count(uploads: Uploads, folder: DataFolder):
    """As a process leaves it that is killed while such bytes come in."""
    upload_id = uploads.create(About(OWNER, 9), key="k")
    append(uploads, upload_id, b"abc")
    ((folder.uploads / upload_id) / "unchecked").write_text("3")
    with ((folder.uploads / upload_id) / "video").open("ab") as video:
        video.write(b"xyz")
    assert uploads.look(upload_id, owner=OWNER).offset_bytes == 3
    assert append(uploads, upload_id, b"def") == 6
    assert read(folder, upload_id) == b"abcdef"


def test_after_a_power_cut_an_upload_ends_before_bytes_that_never_reached_the_disk(
    uploads: Uploads, folder: DataFolder, space: SpaceLedger
):
    upload_id, whole = (uploads.create(About(OWNER, 100_000), key="k") for _ in range(2))
    append(uploads, upload_id, os.urandom(8192))
    append(uploads, whole, os.urandom(50_000))
    uploads.recover()
    os.truncate((folder.uploads / upload_id) / "video", 50_000)  # the size came to the disk, the rest did not
    later = Uploads(folder.uploads, space, UploadLimits(HOUR, 5), boot_id=lambda: "2")
    assert later.recover() == 1
    assert [later.look(one, owner=OWNER).offset_bytes for one in (upload_id, whole)] == [8192, 50_000]
    assert later.recover() == 0


@given(st.lists(st.binary(max_size=3 * BLOCK_BYTES), max_size=6), st.integers(0, 2 * BLOCK_BYTES))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_writes_end_at_the_end_of_a_block_until_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], start: int
):
    ends: list[int] = []
    writev = os.writev

    def note(descriptor: int, buffers: list[memoryview]) -> int:
        written = writev(descriptor, buffers)
        ends.append(os.fstat(descriptor).st_size)
        return written

    path = tmp_path / "file"
    path.write_bytes(b"s" * start)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    with monkeypatch.context() as patched:
        patched.setattr("app.storage.descriptors.os.writev", note)
        writer = UploadWriter(descriptor, start, lambda _: None)
        for piece in pieces:
            writer.write(piece)
        before_finish = [*ends]
        writer.finish()
    os.close(descriptor)
    data = b"s" * start + b"".join(pieces)
    assert path.read_bytes() == data
    assert writer.size_bytes == len(data)
    unaligned = [end for end in before_finish if end % BLOCK_BYTES]
    assert all(end < (start // BLOCK_BYTES + 1) * BLOCK_BYTES for end in unaligned)


def test_where_the_disk_was_full_for_a_moment_nothing_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, data, writev = tmp_path / "file", os.urandom(3 * BLOCK_BYTES), os.writev
    tries: list[int] = []

    def short_then_none(descriptor: int, buffers: list[memoryview]) -> int:
        tries.append(len(buffers))
        if len(tries) > 1:
            raise OSError(errno.ENOSPC, "the disk is full")
        return writev(descriptor, [buffers[0], buffers[1][:BLOCK_BYTES]])

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    writer = UploadWriter(descriptor, 0, lambda _: None)
    writer.write(data[:10])
    with monkeypatch.context() as patched:
        patched.setattr("app.storage.descriptors.os.writev", short_then_none)
        with pytest.raises(OSError, match="full"):
            writer.write(data[10:])
    writer.finish()
    os.close(descriptor)
    assert path.read_bytes() == data[: 10 + BLOCK_BYTES]


def test_who_comes_later_has_the_one_before_stop(uploads: Uploads):
    upload_id, is_taken_over = uploads.create(About(OWNER, 9), key="k"), threading.Event()

    def until_taken_over() -> Iterator[bytes]:
        yield b"abc"
        assert is_taken_over.wait(20)

    def write() -> None:
        with uploads.hold(upload_id, owner=OWNER) as held:
            begun.set()
            held.append(until_taken_over(), None, on_takeover=is_taken_over.set)

    begun = threading.Event()
    writer = threading.Thread(target=write, name="writer")
    writer.start()
    assert begun.wait(20)
    with uploads.hold(upload_id, owner=OWNER) as held:
        assert held.facts().offset_bytes == 3
    writer.join(20)


def test_one_who_does_not_stop_keeps_others_out(uploads: Uploads, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads_module, "HOLD_SECONDS", 0.05)
    upload_id = uploads.create(About(OWNER, 9), key="k")
    with (
        uploads.hold(upload_id, owner=OWNER),
        pytest.raises(UploadLocked),
        uploads._locked(upload_id, seconds=0.05),
    ):
        pass


def test_an_upload_that_another_version_began_goes_on(uploads: Uploads, folder: DataFolder):
    upload_id = uploads.create(About(OWNER, 9), key="k")
    record = (folder.uploads / upload_id) / "about.json"
    record.write_bytes(orjson.dumps(orjson.loads(record.read_bytes()) | {"sha256": None}))
    assert append(uploads, upload_id, b"abc") == 3


def test_an_upload_that_is_removed_meanwhile_is_not_found(uploads: Uploads):
    upload_id = uploads.create(About(OWNER, 9), key="k")
    with uploads.hold(upload_id, owner=OWNER) as held:
        held.remove()
    for ask in (
        lambda one: uploads.look(one, owner=OWNER),
        lambda one: uploads.hold(one, owner=OWNER).__enter__(),
    ):
        with pytest.raises(UploadNotFound):
            ask(upload_id)


@pytest.mark.parametrize("name", ["", "..", "A" * 32, "0" * 31, "boot"])
def test_what_is_no_id_is_not_found(uploads: Uploads, name: str):
    with pytest.raises(UploadNotFound):
        uploads.look(name, owner=OWNER)


def test_an_upload_ends_so_long_after_its_last_byte(uploads: Uploads, folder: DataFolder, clock: Clock):
    old, fresh = (uploads.create(About(OWNER, 9), key="k") for _ in range(2))
    for name in ("about.json", "video"):
        os.utime((folder.uploads / old) / name, (time.time() - HOUR + 5,) * 2)
    os.utime((folder.uploads / fresh) / "about.json", (time.time() - 2 * HOUR,) * 2)
    assert uploads.remove_expired() == 0
    clock.late_seconds = 6
    with pytest.raises(UploadGone):
        uploads.look(old, owner=OWNER)
    with uploads.hold(fresh, owner=OWNER):
        clock.late_seconds = 2 * HOUR
        assert uploads.remove_expired() == 1  # not the one that somebody has
    assert uploads.remove_expired() == 1
    assert not [*folder.uploads.iterdir()]


def test_a_creation_that_was_cut_short_is_removed_once_nobody_can_be_at_it(
    uploads: Uploads, folder: DataFolder, clock: Clock
):
    (folder.uploads / ("a" * 32)).mkdir()
    assert uploads.remove_expired() == 0
    clock.late_seconds = 61
    assert uploads.remove_expired() == 1


# ---- joining


@pytest.fixture
def make_parts(uploads: Uploads) -> Callable[..., list[str]]:
    def make(*contents: bytes) -> list[str]:
        parts = [uploads.create(About(OWNER, len(data), is_part=True), key="k") for data in contents]
        for part, data in reversed([*zip(parts, contents, strict=True)]):
            append(uploads, part, data)
        return parts

    return make


def join(uploads: Uploads, space: SpaceLedger, parts: list[str], limit_bytes: int = 10**9) -> str:
    about = About(OWNER, None, notes={"Upload-Concat": "final;…"}, parts=tuple(parts))
    return join_uploads(uploads, space, about, limit_bytes=limit_bytes).id


SIZES = (5000, 0, 12_288, 1)


def test_parts_are_joined_in_the_order_that_is_asked_for(
    uploads: Uploads, space: SpaceLedger, folder: DataFolder, make_parts: Callable[..., list[str]]
):
    contents = [os.urandom(size) for size in SIZES]
    parts = make_parts(*contents)
    order = [2, 0, 3, 1]
    final = join(uploads, space, [parts[number] for number in order])
    assert read(folder, final) == b"".join(contents[number] for number in order)
    assert uploads.look(final, owner=OWNER).is_whole
    for part, size in zip(parts, SIZES, strict=True):  # they stay known, without their bytes
        assert uploads.look(part, owner=OWNER).offset_bytes == size
        assert not ((folder.uploads / part) / "video").exists()
    assert join(uploads, space, [parts[number] for number in order]) == final
    with pytest.raises(UploadGone, match="has been used"):
        join(uploads, space, parts)


@pytest.mark.parametrize("steps", range(6))
def test_a_join_that_was_cut_short_is_finished_by_the_next_try(
    uploads: Uploads,
    space: SpaceLedger,
    folder: DataFolder,
    make_parts: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
):
    contents = [os.urandom(size) for size in (10_000, 20_000, 7)]
    parts = make_parts(*contents)
    copies, copy = [0], copy_bytes

    def copy_or_die(*arguments: int) -> int:
        copies[0] += 1
        if copies[0] > steps:
            raise KeyboardInterrupt
        return copy(*arguments)

    monkeypatch.setattr(joining_module, "_STEP_BYTES", 8192)
    with monkeypatch.context() as patched:
        patched.setattr(joining_module, "copy_bytes", copy_or_die)
        with suppress(KeyboardInterrupt):
            join(uploads, space, parts)
    assert uploads.look(joined_id(parts), owner=OWNER).is_whole == (steps >= 5)
    assert read(folder, join(uploads, space, parts)) == b"".join(contents)


def test_only_finished_parts_are_joined(
    uploads: Uploads, space: SpaceLedger, make_parts: Callable[..., list[str]]
):
    parts = [*make_parts(b"abc"), uploads.create(About(OWNER, 3, is_part=True), key="k")]
    with pytest.raises(UploadUnfinished):
        join(uploads, space, parts)
    with pytest.raises(NotAPart):
        join(uploads, space, [uploads.create(About(OWNER, 0), key="k")])
    with pytest.raises(UploadNotFound):
        join(uploads, space, ["f" * 32])
    with pytest.raises(BodyTooLarge):
        join(uploads, space, parts[:1], limit_bytes=2)
    assert append(uploads, parts[1], b"def") == 3
    join(uploads, space, parts)
