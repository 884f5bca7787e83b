"""In the child: the sample tables of an MP4 tell of frames whose data is not in the file."""

from __future__ import annotations

from collections.abc import Iterator

from av.packet import Packet
from av.video.stream import VideoStream

from app.video.container import PacketReader
from app.video.headers import Header
from app.video.planner import PacketFlag, PacketRecord


class SampleTiming:
    """Time stamps from the sample tables, trusted only if they equal those of every packet that was read.

    FFmpeg's index gives each sample's decoding time after edit lists; presentation follows by the
    composition offsets and one shift for the whole track.
    """

    def __init__(self, reader: PacketReader) -> None:
        header = reader.header
        self._reader = reader  # which may open its stream anew
        self._offsets = _offsets_of(reader.stream, header)
        self._shift: int | None = None
        self.is_movie = bool(header.tracks) and not header.fragment_samples
        self._is_trusted = self.is_movie

    def check(self, ordinal: int, packet: Packet[VideoStream]) -> None:
        """Compare with a packet as it was read; they come in the index's order."""
        if not self._is_trusted:
            return
        offset = next(self._offsets, None)
        if offset is None or packet.pts is None or packet.dts is None:
            self._is_trusted = False
            return
        shift = packet.pts - packet.dts - offset
        if self._shift is None:
            self._shift = shift
        entries = self._reader.stream.index_entries
        is_same = ordinal < len(entries) and entries[ordinal].timestamp == packet.dts
        self._is_trusted = is_same and shift == self._shift

    def records_from(self, ordinal: int) -> list[PacketRecord]:
        """Return the records of the samples from `ordinal` on; none if the tables cannot be trusted."""
        if not self._is_trusted or self._shift is None:
            return []
        records = []
        entries = self._reader.stream.index_entries
        for number in range(ordinal, len(entries)):
            entry, offset = entries[number], next(self._offsets, None)
            if offset is None:
                break
            flags = PacketFlag.KEY | PacketFlag.CLEAN if entry.is_keyframe else PacketFlag(0)
            if entry.is_discard:
                flags |= PacketFlag.DISCARD
            pts = entry.timestamp + offset + self._shift
            records.append(PacketRecord(number, pts, entry.timestamp, entry.pos, entry.size, flags))
        return records


def _offsets_of(stream: VideoStream, header: Header) -> Iterator[int]:
    """The composition offset of each sample, in ticks, in decoding order."""
    if stream.index >= len(header.tracks):
        return
    track = header.tracks[stream.index]
    if not track.offsets:
        for _ in range(track.samples):
            yield 0
    for count, ticks in track.offsets:
        for _ in range(count):
            yield ticks
