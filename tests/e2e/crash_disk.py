"""A disk that can lose its power: what had reached it at one instant, and nothing more.

An ext4 lies in a file, and that file on a btrfs, where a copy (FICLONE) is made of one instant, in
milliseconds and between two writes of the device. What ext4 still held in memory is not in it. Mounting the
copy replays the journal, as the next start of the machine would. ext4 writes by itself only every five
minutes here, so that whatever was not synced is gone. A drive's own cache is not part of the game.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

DISK_BYTES = 512 * 1024 * 1024
HOST_BYTES = 8 * 1024 * 1024 * 1024  # sparse; copies share what they have in common
_COMMAND_SECONDS = 120


class NoSuchDisk(Exception):
    """This user or this machine cannot have one; the text says why."""


class CrashDisk:
    """The disk, mounted at `root` from `with` on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._host = folder / "host"
        self._image = self._host / "disk"
        self._stack = ExitStack()
        self.root = folder / "disk"

    def __enter__(self) -> Self:
        try:
            self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self._stack.close()
            told = getattr(error, "stderr", None) or str(error)
            raise NoSuchDisk(f"cannot make a disk to cut: {told.strip()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make(self) -> None:
        host_image = self._folder / "host.image"
        _make_sparse(host_image, HOST_BYTES)
        _run("mkfs.btrfs", "--quiet", str(host_image))
        self._stack.enter_context(_mounted(host_image, self._host))
        _make_sparse(self._image, DISK_BYTES)
        _run("mkfs.ext4", "-q", str(self._image))
        self._stack.enter_context(_mounted(self._image, self.root, "commit=300"))

    def cut(self, name: str) -> Path:
        """Copy the disk as a power cut at this instant would leave it; return the copy."""
        copy = self._host / name
        _run("cp", "--reflink=always", str(self._image), str(copy))
        return copy

    @contextmanager
    def after(self, copy: Path) -> Iterator[Path]:
        """Yield where the copy is mounted, its journal replayed; the copy is gone afterwards."""
        with _mounted(copy, self._folder / f"after-{copy.name}") as root:
            yield root
        copy.unlink()


@contextmanager
def _mounted(image: Path, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    _run("mount", "-o", ",".join(["loop", "noatime", *options]), str(image), str(folder))
    try:
        yield folder
    finally:
        _run("umount", str(folder))


def _make_sparse(path: Path, size_bytes: int) -> None:
    with path.open("xb") as file:
        file.truncate(size_bytes)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
