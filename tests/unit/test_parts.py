"""A part is whole, or it is not there."""

from __future__ import annotations

import os
import struct
from itertools import count
from pathlib import Path

import pytest

from app.storage.parts import PartStore, TornPart


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    store = PartStore(tmp_path / "parts")
    store.create()
    return store


def write(store: PartStore, number: int, records: list[list[bytes]]) -> None:
    """The frames' time stamps are -3, 37, 77, …"""
    pts = count(-3, 40)
    with store.write(number) as part:
        for batch in records:
            part.append(batch, [next(pts) for _ in batch])
        part.finish({"analysed": sum(map(len, records))})


def test_a_part_reads_back_what_was_written(store: PartStore) -> None:
    write(store, 7, [[b"[0,[]]", b"[1,[]]"], [], [b"[2,[]]"]])
    part = store.read(7)
    assert part is not None
    assert b"".join(part.body.blocks()) == b"[0,[]],\n[1,[]],\n[2,[]]"
    assert struct.unpack("<3q", b"".join(part.pts.blocks())) == (-3, 37, 77)
    assert part.footer == {"analysed": 3}


def test_an_absent_part_reads_as_none(store: PartStore) -> None:
    assert store.read(0) is None


def test_a_part_without_records_is_a_part(store: PartStore) -> None:
    write(store, 0, [])
    part = store.read(0)
    assert part is not None
    assert (part.body_bytes, part.pts_bytes) == (0, 0)


def test_a_writer_that_fails_leaves_nothing(store: PartStore, tmp_path: Path) -> None:
    with pytest.raises(TypeError), store.write(0) as part:
        part.append([b"[0,[]]", "text"], [0, 1])  # type: ignore[list-item]  # makes the writer fail
    assert store.read(0) is None
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_writer_that_does_not_finish_leaves_nothing(store: PartStore) -> None:
    with pytest.raises(ValueError, match="not finished"), store.write(0) as part:
        part.append([b"[0,[]]"], [0])
    assert store.read(0) is None


def test_a_record_without_a_time_stamp_is_refused(store: PartStore) -> None:
    with pytest.raises(ValueError, match="2 records with 1 time"), store.write(0) as part:
        part.append([b"[0,[]]", b"[1,[]]"], [0])
    assert store.read(0) is None


def test_a_part_of_an_older_form_is_torn(store: PartStore, tmp_path: Path) -> None:
    write(store, 0, [[b"[0,[]]"]])
    path = tmp_path / "parts" / "00000000.part"
    path.write_bytes(path.read_bytes().removesuffix(b"FBpart02") + b"FBpart01")
    with pytest.raises(TornPart):
        store.read(0)


def test_every_cut_and_every_flipped_byte_is_noticed(store: PartStore, tmp_path: Path) -> None:
    write(store, 0, [[b'[0,[{"box":[1.0,2.0,3.0,4.0],"label":"person","score":0.5}]]']])
    path = tmp_path / "parts" / "00000000.part"
    whole = path.read_bytes()
    torn = [whole[:length] for length in range(len(whole))]
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        torn.append(bytes(flipped))
    for content in torn:
        path.write_bytes(content)
        with pytest.raises(TornPart):
            store.read(0)


def test_the_last_writer_of_a_part_wins_whole(store: PartStore) -> None:
    with store.write(0) as first:
        first.append([b"[0,[]]"], [0])
        write(store, 0, [[b"[0,[]]", b"[1,[]]"]])
        first.finish({"analysed": 1})
    part = store.read(0)
    assert part is not None
    assert part.footer == {"analysed": 1}


def test_create_drops_what_a_killed_writer_left(store: PartStore, tmp_path: Path) -> None:
    leftover = tmp_path / "parts" / ".00000003.part.deadbeef.tmp"
    leftover.write_bytes(b"half")
    store.create()
    assert not leftover.exists()


def test_the_trace_differs_once_a_part_was_made_also_in_place_of_another(
    store: PartStore, tmp_path: Path
) -> None:
    assert PartStore(tmp_path / "absent").trace() == store.trace() == ""
    for number in (3, 4, 3):
        before = store.trace()
        write(store, number, [[b"[0,[]]"]])
        assert store.trace() != before
        for part in (tmp_path / "parts").iterdir():
            os.utime(part, ns=(0, 0))  # long ago
    assert store.trace() == store.trace()
