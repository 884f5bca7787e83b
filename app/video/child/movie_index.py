"""The packets of an MP4 or MOV according to its header, without reading them.

Once FFmpeg has read the header, it has the whole index: positions, sizes, decoding times after edit lists,
and which packets are keyframes or not shown. Presentation times follow from the composition offsets of the
file's own tables and one shift for the whole track. All this is trusted as long as it agrees with every
packet that was read before the first frame, with the file's own tables entry by entry, and with the bytes of
keyframes. In H.264 that may be interlaced, the first bytes of every packet are read: only they show second
fields.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from av.index import IndexEntries, IndexEntry

from app.video.child.container import PacketReader
from app.video.child.fields import FieldReader
from app.video.child.keyframes import HEAD_BYTES, SEARCHED_BYTES, KeyframeReader
from app.video.child.sample_table import Sample, has_plain_tables, read_samples
from app.video.protocol.packets import PacketFlag, PacketRecord

# Codecs whose packets FFmpeg returns as they are in the file, one per sample, with the container's flags or
# with flags that follow from their first bytes.
_FLAGGED_BY_BYTES = frozenset(("h264", "hevc"))
_EVERY_ONE_KEY = frozenset(("mjpeg", "prores", "dnxhd"))
_CODECS = _FLAGGED_BY_BYTES | _EVERY_ONE_KEY | {"mpeg4", "av1", "libdav1d"}
_ENTRIES_AT_A_TIME = 4096


class MovieIndex:
    """The records of packets that need not be read. First `check` those that were read, in order."""

    def __init__(self, reader: PacketReader, keyframes: KeyframeReader, fields: FieldReader) -> None:
        header, stream = reader.header, reader.stream
        track = header.tracks[stream.index] if stream.index < len(header.tracks) else None
        self.is_movie = header.has_sample_tables
        self._reader = reader  # which may reopen its stream
        self._file_bytes = header.file_bytes
        self._keyframes = keyframes
        self._fields = fields  # which has seen the packets that were read
        self._codec = stream.codec_context.name
        self._knows_flags = self._codec in _CODECS
        self._is_trusted = False
        self._samples: Iterator[Sample] = iter(())
        self._shift: int | None = None  # from a sample's composition to a packet's pts, in ticks
        if self.is_movie and track is not None and has_plain_tables(reader.descriptor, track):
            self._is_trusted = True
            self._samples = read_samples(reader.descriptor, track)

    def __len__(self) -> int:
        """How many packets the header declares, whether they are in the file or not."""
        return len(self._entries) if self.is_movie else 0

    def ends_inside(self, ordinal: int) -> bool:
        """Whether the file ends inside that packet, according to the header."""
        if not self.is_movie or not 0 <= ordinal < len(self._entries):
            return False
        entry = self._entries[ordinal]
        return bool(entry.pos + entry.size > self._file_bytes)

    @property
    def can_replace_reading(self) -> bool:
        """Whether the records of the next packets are known without reading them."""
        return self._is_trusted and self._knows_flags and self._shift is not None

    def check(self, packet: PacketRecord) -> None:
        """Compare a packet as it was read. If it differs, the index is not trusted any more."""
        entries = self._entries
        if not self._is_trusted or packet.ordinal >= len(entries) or packet.pts is None or packet.dts is None:
            self._is_trusted = False
            return
        entry = entries[packet.ordinal]
        sample = self._sample_of(entry)
        if sample is None:
            return
        if self._shift is None:
            self._shift = packet.pts - packet.dts - sample.offset_ticks
        expected = self._record(packet.ordinal, entry, sample.offset_ticks)
        self._is_trusted = expected._replace(flags=packet.flags) == packet
        self._knows_flags &= expected.flags == packet.flags

    def records_from(self, ordinal: int) -> Iterator[PacketRecord]:
        """Yield the records of the packets from `ordinal` on, up to the last that the file holds.

        If something does not agree, they end early and `can_replace_reading` becomes False: go on reading.
        """
        for number, entry in self._entries_from(ordinal):
            if entry.pos >= self._file_bytes:
                return
            sample = self._sample_of(entry)
            if sample is None:
                return
            record = self._record(number, entry, sample.offset_ticks)
            if self._fields.may_see_fields:
                # Interlaced streams may change from frames to fields anywhere: only the bytes show it.
                head = os.pread(self._reader.descriptor, min(HEAD_BYTES, record.size_bytes), entry.pos)
                is_key = bool(record.flags & PacketFlag.KEY)
                if self._fields.is_second_field(head, is_key=is_key, packet_bytes=record.size_bytes):
                    record = record._replace(flags=PacketFlag.DISCARD)
            yield record
            if entry.pos + entry.size > self._file_bytes:
                return

    def records_lost_from(self, ordinal: int) -> Iterator[PacketRecord]:
        """Yield the records of the packets from `ordinal` on, which the file does not hold.

        There are none if the header cannot be trusted.
        """
        for number, entry in self._entries_from(ordinal):
            sample = self._sample_of(entry)
            if sample is None or self._shift is None:
                return
            flags = PacketFlag.KEY | PacketFlag.CLEAN if entry.is_keyframe else PacketFlag(0)
            flags |= PacketFlag.DISCARD if entry.is_discard else PacketFlag(0)
            pts = entry.timestamp + sample.offset_ticks + self._shift
            yield PacketRecord(number, pts, entry.timestamp, entry.pos, entry.size, flags)

    @property
    def _entries(self) -> IndexEntries:
        return self._reader.stream.index_entries

    def _entries_from(self, ordinal: int) -> Iterator[tuple[int, IndexEntry]]:
        entries = self._entries
        for first in range(ordinal, len(entries), _ENTRIES_AT_A_TIME):
            yield from enumerate(entries[first : first + _ENTRIES_AT_A_TIME], first)

    def _sample_of(self, entry: IndexEntry) -> Sample | None:
        """Return the sample of `entry`, skipping those that edit lists leave out. None ends all trust."""
        if self._is_trusted and entry.size > 0:
            for sample in self._samples:
                if (sample.position, sample.size_bytes) == (entry.pos, entry.size):
                    return sample
        self._is_trusted = False
        return None

    def _record(self, ordinal: int, entry: IndexEntry, offset_ticks: int) -> PacketRecord:
        pts = entry.timestamp + offset_ticks + (self._shift or 0)
        size = max(0, min(entry.size, self._file_bytes - entry.pos))
        flags = PacketFlag.DISCARD if entry.is_discard else PacketFlag(0)
        if entry.is_keyframe or self._codec in _EVERY_ONE_KEY:
            head, is_clean = b"", self._codec not in _FLAGGED_BY_BYTES
            for length in () if is_clean else (HEAD_BYTES, SEARCHED_BYTES):
                head = os.pread(self._reader.descriptor, min(length, size), entry.pos)
                is_clean = self._keyframes.is_clean_entry(head, size)
                if is_clean or length >= size:
                    break
            if is_clean:
                flags |= PacketFlag.KEY | PacketFlag.CLEAN
            elif self._keyframes.is_any_entry(head, size):
                flags |= PacketFlag.KEY
        return PacketRecord(ordinal, pts, entry.timestamp, entry.pos, size, flags)
