"""Files of the ingest folders are opened beneath them, or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import InvalidSource, SourceChanged, SourceNotFound
from app.storage import ingest as ingest_module
from app.storage.ingest import FileIdentity, Ingest

SECRET = b"not for callers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "ingest"
    (folder / "day" / "day").mkdir(parents=True)
    (folder / "day" / "clip.mp4").write_bytes(b"video")
    (folder / "day" / "day" / "day").write_bytes(b"deeper")
    return folder


@pytest.fixture(params=["openat2", "walk"])
def ingest(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ingest:
    """Both ways of resolving a path: with the kernel's help, and where a kernel or a filter refuses it."""
    if request.param == "walk":
        monkeypatch.setattr(ingest_module, "_SYS_OPENAT2", 100_000)  # ENOSYS: no kernel has that many calls
    return Ingest([folder])


def read(ingest: Ingest, path: str | Path) -> bytes:
    with ingest.open(str(path)) as file:
        return file.path.read_bytes()


def test_a_file_is_named_from_the_root_or_from_its_folder(ingest: Ingest, folder: Path) -> None:
    assert read(ingest, folder / "day" / "clip.mp4") == b"video"
    assert read(ingest, "day/clip.mp4") == b"video"
    assert read(ingest, "day/day/day") == b"deeper"


def test_a_relative_path_is_looked_for_in_each_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.mp4").write_bytes(b"b")
    assert read(Ingest([folder, other]), "b.mp4") == b"b"


@pytest.mark.parametrize("path", ["/etc/passwd", "", "..", "../secret", "day/../../secret", "a\0b", "/", "."])
def test_a_path_that_lies_in_no_folder_is_refused_without_a_look_at_the_disk(
    ingest: Ingest, path: str
) -> None:
    with pytest.raises(InvalidSource, match="none of the folders"):
        read(ingest, path)


def test_a_folder_whose_name_only_begins_alike_is_another_one(ingest: Ingest, folder: Path) -> None:
    evil = folder.with_name("ingest-of-others")
    evil.mkdir()
    (evil / "a").write_bytes(SECRET)
    with pytest.raises(InvalidSource):
        read(ingest, evil / "a")


def test_without_ingest_folders_no_path_may_be_read(folder: Path) -> None:
    with pytest.raises(InvalidSource):
        read(Ingest([]), folder / "day" / "clip.mp4")


def link_out(folder: Path) -> None:
    (folder / "x").symlink_to(folder.parent / "secret")


def link_up(folder: Path) -> None:
    (folder / "x").symlink_to("../secret")


def linked_folder(folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent)
    (folder / "x").symlink_to("out/secret")


def link_by_proc(folder: Path) -> None:
    (folder / "x").symlink_to("/proc/self/root")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "x")


def unix_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "x"))


def subfolder(folder: Path) -> None:
    (folder / "x").mkdir()


def dangling(folder: Path) -> None:
    (folder / "x").symlink_to("nothing")


def loop(folder: Path) -> None:
    (folder / "x").symlink_to("x")


def nothing(_: Path) -> None: ...


@pytest.mark.parametrize(
    "make",
    [link_out, link_up, linked_folder, link_by_proc, fifo, unix_socket, subfolder, dangling, loop, nothing],
)
def test_what_is_no_regular_file_of_the_folder_is_not_found(
    ingest: Ingest, folder: Path, make: Callable[[Path], None]
) -> None:
    make(folder)
    for path in ("x", "x/secret", "x/etc/passwd", "out/secret"):
        with pytest.raises(SourceNotFound):
            read(ingest, path)


def test_a_device_is_not_found() -> None:
    with pytest.raises(SourceNotFound):
        read(Ingest([Path("/dev")]), "/dev/null")


@given(
    st.lists(
        st.sampled_from(["..", ".", "", "day", "out", "back", "secret", "clip.mp4", "proc", "self", "root"]),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_to_what_lies_outside(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    root = tmp_path_factory.getbasetemp() / "outside"
    folder = root / "ingest"
    if not root.exists():
        (folder / "day").mkdir(parents=True)
        (folder / "day" / "clip.mp4").write_bytes(b"video")
        (root / "secret").write_bytes(SECRET)
        (folder / "out").symlink_to("..")
        (folder / "day" / "back").symlink_to("../out")
        (folder / "proc").symlink_to("/proc")
    for prefix in ("", f"{folder}/"):
        try:
            found = read(Ingest([folder]), prefix + "/".join(parts))
        except (InvalidSource, SourceNotFound):
            continue
        assert found == b"video"


def test_an_open_file_stays_the_same_one_whatever_becomes_of_its_name(ingest: Ingest, folder: Path) -> None:
    clip = folder / "day" / "clip.mp4"
    with ingest.open("day/clip.mp4") as file:
        clip.rename(folder / "elsewhere")
        clip.write_bytes(b"another")
        assert file.path.read_bytes() == b"video"
        file.check_unchanged()
        (folder / "elsewhere").unlink()
        assert file.path.read_bytes() == b"video"
        file.check_unchanged()


@pytest.mark.parametrize("content", [b"other", b"longer than it was", b""])
def test_a_file_that_was_written_to_has_changed(ingest: Ingest, folder: Path, content: bytes) -> None:
    clip = folder / "day" / "clip.mp4"
    os.utime(clip, ns=(0, 1_700_000_000_000_000_000))
    with ingest.open("day/clip.mp4") as file:
        with clip.open("r+b") as writer:
            writer.truncate()
            writer.write(content)
        with pytest.raises(SourceChanged):
            file.check_unchanged()


def test_a_file_that_was_replaced_is_not_the_expected_one(ingest: Ingest, folder: Path) -> None:
    clip = folder / "day" / "clip.mp4"
    with ingest.open("day/clip.mp4") as file:
        expected, times = file.identity, clip.stat().st_mtime_ns
        clip.rename(folder / "old")
        clip.write_bytes(b"vide0")
        os.utime(clip, ns=(times, times))
    with ingest.open("day/clip.mp4") as file, pytest.raises(SourceChanged):
        file.check_unchanged(expected)
    assert isinstance(expected, FileIdentity)


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_no_descriptor_is_left_open(ingest: Ingest) -> None:
    before = open_descriptors()
    for path in ("day/clip.mp4", "day", "nothing", "day/clip.mp4/more", "../secret"):
        with suppress(InvalidSource, SourceNotFound):
            read(ingest, path)
    assert open_descriptors() == before
