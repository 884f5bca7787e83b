"""The walkers of ASF, AVI, Matroska and fragmented MP4: what they let pass, and what they note where."""

from __future__ import annotations

import struct

import pytest
from walking import box, chunk, element, fragment, riff, walk

# -- AVI

HAS_INDEX = chunk(b"avih", bytes(12) + struct.pack("<I", 0x10) + bytes(40))
NO_INDEX = chunk(b"avih", bytes(56))


def frames(count: int, *, pads: bool = True) -> bytes:
    pictures = [chunk(b"00dc", b"v" * (301 + number % 2), pads=pads) for number in range(count)]
    return b"".join(picture + chunk(b"01wb", b"") for picture in pictures)


def index(count: int) -> bytes:
    return chunk(b"idx1", struct.pack("<4sIII", b"00dc", 0, 4, 300) * count)


def avi(movi: bytes, *behind: bytes, avih: bytes = HAS_INDEX) -> bytes:
    lists = riff(b"LIST", b"hdrl", avih) + chunk(b"JUNK", bytes(99)) + riff(b"LIST", b"movi", movi)
    return riff(b"RIFF", b"AVI ", lists + b"".join(behind))


def test_intact_avi_files_have_no_break():
    record = riff(b"LIST", b"rec ", frames(2))
    more = riff(b"RIFF", b"AVIX", riff(b"LIST", b"movi", frames(9) + chunk(b"ix00", bytes(40))))
    assert walk("avi", avi(frames(40), index(40))) == []
    assert walk("avi", avi(frames(40), avih=NO_INDEX)) == []
    assert walk("avi", avi(frames(40) + record, index(42)) + more + more + bytes(500)) == []
    assert walk("avi", avi(frames(41, pads=False), index(41))) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (avi(frames(40)), "no index, though the header says that there is one"),
        (avi(frames(40), index(50)), "the index lists 50 chunks 00dc, the file has 40"),
        (avi(frames(40), index(40))[:-1000], "the file ends before its RIFF list does"),
        (
            riff(b"RIFF", b"AVI ", riff(b"LIST", b"movi", frames(9), size=0), size=0),
            "a recording that was not finished: the size of a list was never written",
        ),
    ],
)
def test_faults_of_whole_avi_files_are_noted(data: bytes, reason: str):
    notes = walk("avi", data)
    assert notes is not None
    assert reason in [text for _, text in notes]


def test_an_index_that_points_beyond_an_avi_file_is_noted():
    entry = struct.pack("<QII", 1 << 40, 100, 5)
    super_index = chunk(b"indx", struct.pack("<HBBI4s12x", 4, 0, 0, 1, b"00dc") + entry)
    data = avi(frames(40), index(40), avih=HAS_INDEX + riff(b"LIST", b"strl", super_index))
    notes = walk("avi", data)
    assert notes is not None
    assert [text for _, text in notes] == ["the index points beyond the end of the file"]


def test_damage_in_an_avi_file_is_noted_where_it_is():
    data = avi(frames(80), index(80))
    first, second = data.index(b"00dc", 8000), data.index(b"00dc", 20_000)
    damaged = data[:first] + bytes(700) + data[first + 700 : second] + b"\x99" * 77 + data[second:]
    notes = walk("avi", damaged)
    assert notes is not None
    assert [at for at, text in notes if text == "bytes that are no chunk"] == [first, second]


# -- Matroska

HEADER = element(0x1A45DFA3, element(0x4282, b"webm"))


def cluster(count: int, *, has_size: bool = True, size: int = 500) -> bytes:
    blocks = b"".join(element(0xA3, bytes((0x81, 0, number, 0x80)) + b"b" * size) for number in range(count))
    group = element(0xA0, element(0xA1, b"g" * 300) + element(0x9B, b"\x01") + element(0xEC, bytes(9)))
    return element(0x1F43B675, element(0xE7, b"\x05") + blocks + group, has_size=has_size)


def segment(*parts: bytes, has_size: bool = True) -> bytes:
    tracks = element(0x1654AE6B, b"t" * 90)
    return element(0x18538067, tracks + b"".join(parts), has_size=has_size)


def test_intact_matroska_files_have_no_break():
    cues, tags = element(0x1C53BB6B, b"c" * 70), element(0x1254C367, b"t" * 70)
    unknown, void = element(0x1B2C3D4E, b"u" * 50), element(0xEC, bytes(60))
    sized = segment(element(0xBF, bytes(4)), cluster(9), void, unknown, cluster(3), cues, tags)
    live = segment(cluster(9, has_size=False), cluster(9, has_size=False), cues, has_size=False)
    assert walk("matroska", HEADER + sized) == []
    assert walk("matroska", HEADER + live) == []
    assert walk("matroska", HEADER + sized + HEADER + live + HEADER + sized) == []
    assert walk("matroska", HEADER + sized + b"trailing bytes") == []


def test_clusters_behind_the_end_of_a_segment_are_noted():
    data = HEADER + segment(cluster(9))
    assert walk("matroska", data + cluster(9)) == [(len(data), "a segment that is longer than it says")]


@pytest.mark.parametrize("has_size", [True, False])
def test_damage_in_a_matroska_file_is_noted_where_it_is(has_size: bool):
    parts = [cluster(9, has_size=has_size) for _ in range(12)]
    start = len(HEADER) + len(segment(has_size=has_size))
    data = HEADER + segment(*parts, has_size=has_size)
    size = len(parts[0])
    first, second = start + 2 * size + 560, start + 7 * size + 560
    for damaged in (
        data[:first] + bytes(700) + data[first + 700 : second] + bytes(40) + data[second:],
        data[:first] + data[first + 411 : second] + bytes(411) + data[second:],
    ):
        notes = walk("matroska", damaged)
        assert notes is not None
        assert len(notes) <= 4
        assert any(abs(at - first) < 1300 for at, _ in notes)
        assert any(abs(at - second) < 1300 for at, _ in notes)


def test_a_matroska_file_that_is_cut_is_noted():
    data = HEADER + segment(cluster(9), cluster(9))
    notes = walk("matroska", data[:-700])
    assert notes is not None
    assert [text for _, text in notes] == [
        "the file ends inside an element",
        "the file ends before its segment does",
    ]
    live = HEADER + segment(cluster(9, has_size=False), has_size=False)
    assert walk("matroska", live[:-3]) != []


# -- fragmented MP4

START = box(b"ftyp", bytes(8)) + box(b"moov", box(b"mvex", bytes(8)))


def test_intact_fragmented_files_have_no_break():
    alternate = b"".join(fragment(n, track=track) for n in range(1, 9) for track in (1, 2))
    apart = fragment(1) + fragment(40, track=2) + fragment(2) + fragment(41, track=2)
    segments = b"".join(box(b"styp", bytes(8)) + fragment(n) + fragment(n + 1) for n in (1, 1, 80))
    whole = b"".join(fragment(n) for n in range(5, 30)) + box(b"mfra", bytes(40))
    last = struct.pack(">I4s", 0, b"mdat") + bytes(99)
    for data in (alternate, segments, whole, fragment(1) + last):
        assert walk("mov", START + box(b"uuid", bytes(20)) + data) == []
    assert walk("mov", START + apart) == [
        (len(START) + len(fragment(1)), "fragments are missing: number 40 comes after 1")
    ]


def test_a_file_with_sample_tables_has_no_walker():
    assert walk("mov", box(b"ftyp", bytes(8)) + box(b"moov", box(b"trak", bytes(8))) + box(b"mdat")) is None


SIZE = len(fragment(0))
FRAGMENTS = b"".join(fragment(number) for number in range(20))
RUN = b"trun\0\0\2\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (FRAGMENTS[: 5 * SIZE] + FRAGMENTS[8 * SIZE :], "fragments are missing: number 8 comes after 4"),
        (FRAGMENTS[: 5 * SIZE] + b"\x01" * 99 + FRAGMENTS[5 * SIZE :], "bytes that are no box"),
        (FRAGMENTS[: 5 * SIZE - 9], "the file ends inside a box"),
        (
            FRAGMENTS.replace(RUN + b"\3", RUN + b"\7", 1),
            "a fragment's table of samples does not fill its box",
        ),
        (FRAGMENTS.replace(b"tfhd", b"\0\0\0\0", 1), "a fragment's boxes do not fill it"),
    ],
)
def test_damage_in_a_fragmented_file_is_noted(data: bytes, reason: str):
    notes = walk("mov", START + data)
    assert notes is not None
    assert reason in [text for _, text in notes]


# -- ASF

PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
ASF_BYTES = 400  # of a packet
PAYLOAD_BYTES = ASF_BYTES - 26
INDEX = bytes.fromhex("90080033b1e5cf1189f400a0c90349cb") + struct.pack("<Q", 60) + bytes(36)


def asf_packet(number: int, offset: int = 0, *, size: int = 0, stream: int = 1) -> bytes:
    """A data packet with one payload: the part from `offset` on of a media object of `size` bytes."""
    head = b"\x82\0\0\0\x5d" + bytes(6) + struct.pack("<BBIBII", stream, number % 256, offset, 8, size, 0)
    return head.ljust(ASF_BYTES, b"p")


def asf(count: int, *, is_live: bool = False, is_bare: bool = False) -> bytes:
    packets = [asf_packet(number, size=PAYLOAD_BYTES) for number in range(count)]
    if is_bare:
        packets = [packet[3:] + b"ppp" for packet in packets]
    fields = struct.pack("<Q48xIII4x", 104, is_live, ASF_BYTES, ASF_BYTES)
    properties = PROPERTIES + fields[:8] + bytes(64) + fields[56:]
    head = b"0&\xb2u\x8ef\xcf\x11" + bytes(8) + struct.pack("<QIH", 30 + len(properties), 1, 0)
    size = 0 if is_live else 50 + count * ASF_BYTES
    return head + properties + DATA + struct.pack("<Q", size) + bytes(26) + b"".join(packets)


def test_intact_asf_files_have_no_break():
    for data in (
        asf(50) + INDEX,
        asf(50, is_live=True),
        asf(50, is_live=True) + INDEX,
        asf(50, is_bare=True),
    ):
        assert walk("asf", data) == []
    halves = [asf_packet(n // 2, n % 2 * PAYLOAD_BYTES, size=2 * PAYLOAD_BYTES) for n in range(600)]
    assert walk("asf", asf(0, is_live=True) + b"".join(halves)) == []


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (asf_packet(11), "a part of a media object is missing"),
        (asf_packet(10, 5), "a part of a media object is missing"),
        (asf_packet(10, stream=0), "a payload of no stream"),
        (
            asf_packet(10)[:3] + b"\x10\x5d\xff\xff" + asf_packet(10)[7:],
            "a payload that ends behind its packet",
        ),
    ],
)
def test_damage_inside_an_asf_packet_is_noted(packet: bytes, reason: str):
    data, place = asf(50), len(asf(10))
    notes = walk("asf", data[:place] + packet + data[place + ASF_BYTES :])
    assert notes is not None
    assert notes[0] == (place, reason)


def test_damage_in_an_asf_file_is_noted_where_it_is():
    data, start = asf(50), len(asf(0))
    place = start + 20 * 400
    for damaged in (
        data[:place] + bytes(900) + data[place + 900 :],
        data[:place] + bytes(900) + data[place:],
    ):
        assert walk("asf", damaged) == [(place, "bytes that are no data packet")]
    notes = walk("asf", data[: place - 250] + data[place - 90 :])
    assert notes is not None
    assert notes[0] == (place, "bytes that are no data packet")


def test_an_asf_file_that_is_cut_is_noted():
    data = asf(50)
    assert walk("asf", data[:-1000]) == [(len(data) - 1000, "the file ends before its last data packet")]
    live = asf(50, is_live=True)
    assert walk("asf", live[:-100]) == [(len(live) - 400, "the file ends inside a data packet")]
