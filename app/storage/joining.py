"""Joining uploads that were sent in parallel into one.

The first part's file becomes the final upload's by a rename. The kernel appends the others to it
(copy_file_range), a step at a time, and the space of bytes that are durable there is freed in the part. On a
file system that shares blocks between files (XFS, btrfs) an append at a block's start writes nothing; on
others, such as ext4, all parts but the first are written a second time. Space is needed for one step.

The final upload's id is made from those of its parts in their order. So a repeated request finds the upload
that it made and continues where a crash stopped it: the size of the file says how far it came.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from app.errors import BodyTooLarge, UploadGone, UploadUnfinished
from app.failpoints import fail_point
from app.storage.descriptors import copy_bytes, give_back_front, opened
from app.storage.durable import fsync_folder
from app.storage.space import SpaceLedger
from app.storage.upload_writer import BLOCK_BYTES
from app.storage.uploads import About, HeldUpload, UploadFacts, Uploads

_STEP_BYTES = 64 * 1024 * 1024
_PROMISE_SECONDS = 3600.0


class NotAPart(Exception):
    """The upload with this id was not created to be joined into another one."""


def joined_id(parts: Sequence[str]) -> str:
    """Return the id of the upload that `parts` are joined to, in this order; as hard to guess as theirs."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def join_uploads(uploads: Uploads, space: SpaceLedger, about: About, *, limit_bytes: int) -> UploadFacts:
    """Join the finished uploads `about.parts`, in this order; return the result, whole and durable.

    The parts stay known, without their bytes. A repeated call does what is left to do. Raises UploadNotFound,
    UploadUnfinished, NotAPart, UploadGone if a part was used for something else or the result has expired,
    BodyTooLarge if together they are longer than `limit_bytes`, InsufficientStorage, UploadLocked.
    """
    final_id = joined_id(about.parts)
    with ExitStack() as stack:
        held = {
            part: stack.enter_context(uploads.hold(part, owner=about.owner)) for part in sorted(about.parts)
        }
        parts = [held[part] for part in about.parts]  # locked in one order, joined in another
        lengths = []
        for part in parts:
            facts = part.settle()
            if not facts.about.is_part:
                raise NotAPart(facts.id)
            if facts.about.final_id not in (None, final_id):
                extensions = {"upload_id": facts.about.final_id}
                raise UploadGone(f"The part {facts.id} has been used.", extensions)
            if not facts.is_whole:
                raise UploadUnfinished(
                    f"The part {facts.id} is not finished.",
                    {"offset_bytes": facts.offset_bytes, "length_bytes": facts.about.length_bytes},
                )
            lengths.append(facts.offset_bytes)
        if sum(lengths) > limit_bytes:
            raise BodyTooLarge(
                f"An upload takes {limit_bytes} bytes at most; the parts have {sum(lengths)}.",
                {"limit_bytes": limit_bytes},
            )
        final = stack.enter_context(uploads.hold_new(final_id, replace(about, length_bytes=sum(lengths))))
        if not final.facts().is_spent:
            _join(final, parts, lengths, space)
        return final.facts()


def _join(final: HeldUpload, parts: Sequence[HeldUpload], lengths: Sequence[int], space: SpaceLedger) -> None:
    if not final.video.exists() and not parts[0].video.exists():
        final.remove()
        raise UploadGone("The parts have been used, and what they were joined to is gone.")
    for part in parts:  # from here on they cannot be used for anything else
        if part.facts().about.final_id is None:
            part.record(final_id=final.id)
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
            if length and part.video.exists():
                with space.disk_full_reported(length):
                    _append(part.video, final.video, start, length)
            part.drop_bytes()
            start += length
    finally:
        space.release(key)


def _append(source: Path, destination: Path, start: int, length: int) -> None:
    """Append the bytes of `source` that `destination` lacks; its `length` bytes belong at `start`."""
    with opened(source, os.O_RDWR) as reading, opened(destination, os.O_RDWR) as writing:
        done = os.lseek(writing, 0, os.SEEK_END) - start
        while done < length:
            to_block = -(start + done) % BLOCK_BYTES or _STEP_BYTES  # see upload_writer.py
            done += copy_bytes(reading, writing, done, min(to_block, length - done))
            os.fdatasync(writing)
            fail_point("step_joined")
            give_back_front(reading, done)
