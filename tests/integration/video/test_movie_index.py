"""The index of an MP4 or MOV comes from its header, and is what reading every packet gives."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import av
import pytest
from clips import RECIPES, ClipFolder

from app.video.child.channel import Channel
from app.video.child.container import OpenOptions, PacketReader
from app.video.child.ffmpeg_log import LogTail
from app.video.child.indexing import Indexer
from app.video.child.refusal import VideoRefused
from app.video.child.watch import PacketWatch
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Command, IndexEnd, Message, unpack_packets
from app.video.protocol.packets import PacketFlag, PacketRecord

# Their second fields are told by their bytes alone.
FIELDS = ("b_fields_apart.mp4", "fields_apart.mp4", "fields_apart_later.mp4")
MOVIES = sorted(name for name in RECIPES if name.endswith((".mp4", ".mov")) and name not in FIELDS)
READ_WHOLE = {  # whose headers do not tell everything
    *("h264_fragments.mp4", "vp9.mp4"),
    *("cfhd.mov", "png.mov", "qtrle.mov", "rpza.mov", "svq1.mov"),
}
DAMAGED = ["hole.mp4", "trunc_faststart.mp4", "editlist.mp4", "opengop.mp4"]


class Recorder:
    """Stands where the pipe to the host is."""

    def __init__(self) -> None:
        self.packets_read = 0
        self.records: list[PacketRecord] = []
        self.end: IndexEnd | None = None

    def send(self, kind: Message, payload: bytes = b"") -> None:
        if kind is Message.PACKETS:
            self.records += unpack_packets(payload, len(self.records))
        elif kind is Message.INDEX_END:
            self.end = IndexEnd.unpack(payload)

    def show_read(self, packets: int) -> None:
        self.packets_read = packets

    def show_fed(self, packets: int) -> None: ...

    def show_opening(self) -> AbstractContextManager[None]:
        return nullcontext()

    def receive(self) -> tuple[Command, bytes]:
        raise EOFError


def index_of(video: Path) -> Recorder:
    recorder, limits = Recorder(), VideoLimits()
    channel = cast("Channel", recorder)  # it does what an indexer asks of one
    descriptor = os.open(video, os.O_RDONLY)
    try:
        reader = PacketReader(OpenOptions(descriptor, 1, limits), channel)
        Indexer(reader, PacketWatch(reader, channel, LogTail()), channel, limits).run()
        reader.close()
    finally:
        os.close(descriptor)
    return recorder


Told = tuple[int | None, int | None, int | None, int, bool, bool]


def told_by_reading(video: Path) -> list[Told]:
    with av.open(str(video), metadata_errors="replace") as container:
        container.flags &= ~0x0001  # no made-up time stamps
        packets = container.demux(container.streams.video[0])
        return [(p.pts, p.dts, p.pos, p.size, p.is_keyframe, p.is_discard) for p in packets if p.size]


def _told(record: PacketRecord) -> Told:
    is_key = bool(record.flags & PacketFlag.KEY)
    is_hidden = bool(record.flags & PacketFlag.DISCARD)
    return record.pts, record.dts, record.position, record.size_bytes, is_key, is_hidden


@pytest.mark.parametrize("name", MOVIES)
def test_the_header_tells_what_every_packet_tells(name: str, clips: ClipFolder) -> None:
    video = clips.get(name)
    packets, index = told_by_reading(video), index_of(video)
    assert [_told(record) for record in index.records] == packets
    assert (index.packets_read >= len(packets)) == (name in READ_WHOLE)


def test_fields_that_begin_in_mid_video_are_counted_once_without_reading_on(clips: ClipFolder) -> None:
    index = index_of(clips.get("fields_apart_later.mp4"))
    shown = [number for number, record in enumerate(index.records) if not record.flags & PacketFlag.DISCARD]
    assert shown == [*range(10), *range(10, 90, 2)]
    assert index.packets_read < 5


@pytest.mark.parametrize("name", DAMAGED)
def test_the_header_tells_of_damaged_movies_what_reading_tells(name: str, test_data: Path) -> None:
    video = test_data / "damaged" / name
    packets, index = told_by_reading(video), index_of(video)
    assert [_told(record) for record in index.records[: len(packets)]] == packets
    assert index.packets_read < 10
    assert index.end is not None
    assert index.end.lost == len(index.records) - len(packets)


@pytest.mark.parametrize("lost_bytes", [1, 300, 5000, 12_000])
def test_packets_beyond_the_end_of_the_file_are_told_of_as_lost(
    lost_bytes: int, clips: ClipFolder, tmp_path: Path
) -> None:
    whole, cut = index_of(clips.get("h264_front.mp4")), tmp_path / "cut.mp4"
    cut.write_bytes(clips.get("h264_front.mp4").read_bytes()[:-lost_bytes])
    packets, index = told_by_reading(cut), index_of(cut)
    assert [_told(record) for record in index.records[: len(packets)]] == packets
    assert [record.pts for record in index.records] == [record.pts for record in whole.records]
    assert index.end is not None
    assert index.end.truncated
    assert index.end.lost == len(whole.records) - len(packets)


def _at(kind: bytes, offset: int, value: int) -> Callable[[bytearray], None]:
    """Write a number into the first box of that kind, `offset` bytes after its name."""

    def change(data: bytearray) -> None:
        struct.pack_into(">I", data, data.index(kind) + offset, value)

    return change


DOUBTFUL = {
    "an offset for no sample": _at(b"ctts", 36, 0),
    "more offsets than samples": _at(b"ctts", 36, 2),
    "an offset that FFmpeg does not believe": _at(b"ctts", 40, 1 << 29),
    "a chunk that is elsewhere": _at(b"stco", 16, 100),
    "an empty sample": _at(b"stsz", 16 + 4 * 20, 0),
    "a sample longer than the file": _at(b"stsz", 16 + 4 * 20, 1 << 30),
    "no keyframe but the first": _at(b"stss", 8, 1),
}


@pytest.mark.parametrize("name", sorted(DOUBTFUL))
def test_a_doubtful_header_changes_nothing_that_reading_tells(
    name: str, clips: ClipFolder, tmp_path: Path
) -> None:
    data, video = bytearray(clips.get("h264_sound.mov").read_bytes()), tmp_path / "doubtful.mov"
    DOUBTFUL[name](data)
    video.write_bytes(data)
    packets = [packet[:4] for packet in told_by_reading(video)]
    assert [_told(record)[:4] for record in index_of(video).records[: len(packets)]] == packets


def test_damaged_headers_and_data_are_told_of_as_reading_tells(clips: ClipFolder, tmp_path: Path) -> None:
    """Time stamps, places and sizes; where damage hides a keyframe, either may be the wiser."""
    video, from_header = tmp_path / "mutation.mp4", 0
    for number in range(300):
        chance = random.Random(number)
        data = bytearray(clips.get(MOVIES[number % len(MOVIES)]).read_bytes())
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        video.write_bytes(data)
        try:
            index = index_of(video)
        except VideoRefused:
            continue
        packets = [packet[:4] for packet in told_by_reading(video)]
        assert [_told(record)[:4] for record in index.records[: len(packets)]] == packets, number
        from_header += index.packets_read < len(packets)
    assert from_header > 100
