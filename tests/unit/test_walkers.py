"""What holds for all walkers: hostile bytes neither stop nor slow them, and pauses change no note."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from walking import element, flv, fragment, ivf, ogg_page, ps_pack, ps_packet, riff, ts_run, walk

from app.video.child.walkers.walker import map_block

MIB = 1024 * 1024
ASF_START = b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel"
STARTS = {
    "mpegts": b"".join(ts_run(256, 0, 9)),
    "ogg": ogg_page(1, 0, flags=2),
    "flv": flv(300, 300),
    "mpeg": ps_pack() + ps_packet(0xE0, 400),
    "avi": riff(b"RIFF", b"AVI ", riff(b"LIST", b"movi", b"", size=0), size=0),
    "matroska": element(0x1A45DFA3, b"") + b"\x18\x53\x80\x67\xff\x1f\x43\xb6\x75\xff",
    "mov": fragment(1),
    "asf": ASF_START,
    "ivf": ivf(300, 300),
}
MARKS = [
    b"\x47",
    b"OggS\0",
    b"\x09\0\0\1\0\0\0\0\0\0\0",
    b"\0\0\1\xba\x44",
    b"00dc\1\0\0\0",
    b"RIFF",
    b"LIST",
]
MARKS += [
    b"\x1f\x43\xb6\x75\x80\xe7\x80",
    b"\xec\x80",
    b"\xa3\x81",
    b"\0\0\0\x08moof\0\0\0\x08mfhd",
    b"\x82\0\0",
]


def hostile_bytes() -> st.SearchStrategy[bytes]:
    parts = st.one_of(st.binary(max_size=300), st.sampled_from(MARKS), st.sampled_from(list(STARTS.values())))
    return st.lists(st.tuples(parts, st.integers(1, 40)), max_size=12).map(
        lambda chosen: b"".join(part * times for part, times in chosen)
    )


@pytest.mark.parametrize("container", STARTS)
@given(data=hostile_bytes(), has_start=st.booleans())
@settings(deadline=2000, max_examples=60)
def test_any_bytes_are_walked_to_their_end(container: str, data: bytes, has_start: bool):
    notes = walk(container, (STARTS[container] if has_start else b"") + data)
    assert notes is None or len(notes) <= 1001


@pytest.mark.parametrize("container", STARTS)
@given(stops=st.lists(st.integers(0, 5 * MIB), max_size=8), seed=st.integers(0, 9))
@example(stops=[MIB - 1, MIB, MIB, 10, 2 * MIB], seed=0)
@settings(deadline=None, max_examples=5)
def test_stops_on_the_way_change_no_note(container: str, stops: list[int], seed: int):
    rng = random.Random(seed)
    made = {
        "mpegts": lambda: b"".join(ts_run(256, rng.randrange(16), 2000)),
        "ogg": lambda: b"".join(ogg_page(1, number) for number in range(rng.randrange(9), 700)),
        "flv": lambda: flv(*[rng.randrange(900) for _ in range(800)]),
        "mpeg": lambda: (ps_pack() + ps_packet(0xE0, rng.randrange(2000))) * 300,
        "avi": lambda: b"00dc\x40\1\0\0".ljust(328) * 1000,
        "matroska": lambda: element(0x1F43B675, element(0xE7, b"") + element(0xA3, b"x" * 3000) * 99),
        "mov": lambda: b"".join(fragment(number) for number in range(rng.randrange(9), 90)) * 10,
        "asf": lambda: b"\x82\0\0".ljust(400) * 900,
        "ivf": lambda: ivf(*[rng.randrange(900) for _ in range(800)])[32:],
    }[container]
    data = STARTS[container]
    while len(data) < 3 * MIB:
        data += made() + rng.randbytes(rng.choice((0, 1, 3000, 500_000)))
    assert walk(container, data, stops=stops) == walk(container, data)


@pytest.mark.parametrize("container", STARTS)
@pytest.mark.parametrize("filling", ["zeros", "noise", *range(len(MARKS))])
def test_a_file_of_nothing_but_damage_is_walked_fast(container: str, filling: str | int):
    fillings = {"zeros": bytes(1), "noise": random.Random(1).randbytes(MIB)}
    part = MARKS[filling] if isinstance(filling, int) else fillings[filling]
    data = STARTS[container] + part * (3 * MIB // len(part))
    started = time.perf_counter()
    notes = walk(container, data)
    assert time.perf_counter() - started < 20
    assert notes is None or len(notes) <= 1001


def test_a_container_that_lists_its_frames_has_no_walker():
    assert walk("mxf", bytes(1000)) is None
    assert walk("h264", bytes(1000)) is None
    assert walk("matroska", b"") == []


@pytest.mark.parametrize(
    ("start", "end"), [(0, 9), (4096, 8192), (5000, 9999), (9000, 20_000), (20_000, 20_009)]
)
def test_a_block_holds_the_bytes_of_the_file_and_fewer_where_that_became_shorter(
    tmp_path: Path, start: int, end: int
):
    data = random.Random(3).randbytes(10_000)
    (tmp_path / "file").write_bytes(data)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert map_block(descriptor, start, end) == data[start:end]
    finally:
        os.close(descriptor)
