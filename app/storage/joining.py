"""Joining uploads that were sent in parallel into one.

The first part's file becomes the final upload's by a rename. The kernel appends the others to it
(copy_file_range), a step at a time, and the space of bytes that are durable there is freed in the part. On a
file system that shares blocks between files (XFS, btrfs) an append at a block's start writes nothing; on
others, such as ext4, all parts but the first are written a second time. Space is needed for one step.

The final upload's id is made from those of its parts in their order. So a repeated request finds the upload
that it made and continues where a crash stopped it: the size of the file says how far it came.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from app.errors import BodyTooLarge, UploadGone, UploadUnfinished
from app.failpoints import fail_point
from app.storage.allocation import give_back_front
from app.storage.durable import fsync_folder
from app.storage.space import SpaceLedger
from app.storage.upload_writer import BLOCK_BYTES
from app.storage.uploads import About, HeldUpload, UploadFacts, Uploads

_STEP_BYTES = 64 * 1024 * 1024
_PROMISE_SECONDS = 3600.0
_NO_COPY_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class NotAPart(Exception):
    """The upload with this id was not created to be joined into another one."""


class PartUsed(Exception):
    """The bytes of the part `part_id` have become those of the upload `final_id`."""

    def __init__(self, part_id: str, final_id: str) -> None:
        super().__init__(part_id, final_id)
        self.part_id = part_id
        self.final_id = final_id


def joined_id(parts: Sequence[str]) -> str:
    """Return the id of the upload that `parts` are joined to, in this order; as hard to guess as theirs."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def join_uploads(uploads: Uploads, space: SpaceLedger, about: About, *, limit_bytes: int) -> UploadFacts:
    """Join the finished uploads `about.parts`, in this order; return the result, whole and durable.

    The parts stay known, without their bytes. A repeated call does what is left to do. Raises UploadNotFound,
    UploadUnfinished, NotAPart, PartUsed if a part was used for something else, UploadGone if the result has
    expired, BodyTooLarge if together they are longer than `limit_bytes`, InsufficientStorage, UploadLocked.
    """
    final_id = joined_id(about.parts)
    with ExitStack() as stack:
        held = {
            part: stack.enter_context(uploads.hold(part, owner=about.owner)) for part in sorted(about.parts)
        }
        parts = [held[part] for part in about.parts]  # locked in one order, joined in another
        lengths = [_length(part.settle(), final_id) for part in parts]
        if sum(lengths) > limit_bytes:
            raise BodyTooLarge(
                f"An upload takes {limit_bytes} bytes at most; the parts have {sum(lengths)}.",
                {"limit_bytes": limit_bytes},
            )
        final = stack.enter_context(uploads.hold_new(final_id, replace(about, length_bytes=sum(lengths))))
        if not final.facts().is_spent:
            _join(final, parts, lengths, space)
        return final.facts()


def _length(part: UploadFacts, final_id: str) -> int:
    """Return the part's length, if it may be joined."""
    if not part.about.is_part:
        raise NotAPart(part.id)
    if part.about.final_id is not None and part.about.final_id != final_id:
        raise PartUsed(part.id, part.about.final_id)
    if not part.is_whole:
        raise UploadUnfinished(
            f"The part {part.id} is not finished.",
            {"offset_bytes": part.offset_bytes, "length_bytes": part.about.length_bytes},
        )
    return part.offset_bytes


def _join(final: HeldUpload, parts: Sequence[HeldUpload], lengths: Sequence[int], space: SpaceLedger) -> None:
    if not final.video.exists() and not parts[0].video.exists():
        final.remove()
        raise UploadGone("The parts have been used, and what they were joined to is gone.")
    for part in parts:  # from here on they cannot be used for anything else
        if part.facts().about.final_id is None:
            part.tell(final_id=final.id)
    fail_point("parts_claimed")
    if not final.video.exists():
        parts[0].video.rename(final.video)
        fsync_folder(final.video.parent)
        fsync_folder(parts[0].video.parent)
    fail_point("first_part_moved")
    parts[0].drop_bytes()
    key, start = f"join {final.id}", 0
    space.reserve(key, min(_STEP_BYTES, sum(lengths)), seconds=_PROMISE_SECONDS)
    try:
        for part, length in zip(parts, lengths, strict=True):
            with space.disk_full_reported(length):
                _append(part.video, final.video, start, length)
            part.drop_bytes()
            start += length
    finally:
        space.release(key)


def _append(source: Path, destination: Path, start: int, length: int) -> None:
    """Append the bytes of `source` that `destination` lacks; its `length` bytes belong at `start`."""
    if not source.exists() or not length:
        return
    reading = os.open(source, os.O_RDWR | os.O_CLOEXEC)
    writing = os.open(destination, os.O_RDWR | os.O_CLOEXEC)
    try:
        done = os.fstat(writing).st_size - start
        while done < length:
            to_block = -(start + done) % BLOCK_BYTES or _STEP_BYTES  # see upload_writer.py
            count = min(to_block, length - done)
            done += _copy(reading, writing, done, start + done, count)
            os.fdatasync(writing)
            fail_point("step_joined")
            give_back_front(reading, done)
    finally:
        os.close(writing)
        os.close(reading)


def _copy(source: int, destination: int, source_offset: int, offset: int, count: int) -> int:
    try:
        copied = os.copy_file_range(source, destination, count, source_offset, offset)
    except OSError as error:
        if error.errno not in _NO_COPY_HERE:
            raise
        os.lseek(destination, offset, os.SEEK_SET)
        copied = os.sendfile(destination, source, source_offset, count)
    if not copied:
        raise OSError(errno.EIO, "a part ended before its length")
    return copied
