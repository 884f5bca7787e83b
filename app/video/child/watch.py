"""Read packets, and report evidence that the container has lost data.

Sources of evidence: reads that fail, packets that the demuxer marks as corrupt, its log, and a walker that
checks the container's chain. Evidence at place n was seen between packets n - 1 and n. A container with a
table of its samples needs none of this: the table shows which frames are missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from heapq import heappop, heappush

from av.packet import Packet
from av.video.stream import VideoStream

from app.video.child.channel import Channel
from app.video.child.container import PacketReader
from app.video.child.ffmpeg_log import LogTail
from app.video.child.sample_table import disagreement
from app.video.child.walkers.choice import walker_for
from app.video.child.walkers.mpegts import MpegTsWalker
from app.video.protocol import messages
from app.video.protocol.messages import IndexEnd, Message
from app.video.protocol.packets import Evidence

_WALKERS_LEAD_BYTES = 2 * 1024 * 1024  # walkers go in strides of a mebibyte
_WALKING_STEP_BYTES = 512 * 1024  # of packets, after which the walker continues
# FFmpeg reads the first packets while it opens a container, and then warns about intact files, too. But only
# damage makes it log this:
_SAID_OF_DAMAGE = re.compile("CRC mismatch")
# What demuxers log about intact files later on.
_HARMLESS = re.compile(
    "changing packet size|not correctly marked|DTS .* out of order|Invalid timestamps"
    "|Packet corrupt"  # the packet itself is marked, too
    # Another Matroska file or something else follows: the walker has seen the first one's end.
    "|File extends beyond end of segment|unknown-length element with ID 0x18538067"
)

# Streams without a container. Their picture data never has three zero bytes in a row (H.264 7.4.1, H.265
# 7.4.2, H.262 5.2.3; MPEG-4 part 2 and H.263 have 16 zero bits only in start codes). Any number of zeros may
# fill the gap to the next start code: there, and at the end of all packets but the last, they prove nothing.
_BARE_STREAMS = frozenset(("h264", "hevc", "mpegvideo", "m4v", "h263"))
_ZEROS = bytes(256)
_AFTER_ZEROS = re.compile(rb"[^\x00]")
_NO_DATA = "zeros in place of data"


class PacketWatch:
    """Return a reader's packets, and send evidence of lost data ahead of them."""

    def __init__(
        self,
        reader: PacketReader,
        channel: Channel,
        log: LogTail,
        *,
        first_place: int = 0,
        from_byte: int = 0,
    ) -> None:
        self._reader = reader
        self._channel = channel
        self._log = log
        self._from_byte = from_byte  # earlier evidence is known already
        self._place = first_place  # of the packet that comes next
        self._read_errors = 0
        self.before_sending: Callable[[], None] = lambda: None  # what must be sent ahead of evidence
        self._seen: list[tuple[int | None, str]] = []  # (position, reason), not sent yet
        self._ahead: list[tuple[int, str]] = []  # heap of the walker's, at bytes that no packet has reached
        self._walks_at = 0  # packets from here on make the walker continue, bytes into the file
        self._has_walked = False
        self._ending_zeros: Packet[VideoStream] | None = None  # the last packet, if it ends in zeros
        self._end_pts: int | None = None  # of all packets, in ticks
        name = reader.container.format.name
        self._is_bare = name in _BARE_STREAMS
        self._is_watching = not reader.header.has_sample_tables
        # In streams without a container, demuxer and decoder have the same name: their logs look the same.
        self._demuxer = "" if name == reader.stream.codec_context.name else name
        for text in log.take(self._demuxer):
            if self._is_watching and _SAID_OF_DAMAGE.search(text):
                self._seen.append((None, f"the demuxer says: {text.strip()}"))
        self._walker = None
        if self._is_watching:
            self._walker = walker_for(
                name.split(",")[0],
                reader.descriptor,
                reader.header.file_bytes,
                lambda position, reason: heappush(self._ahead, (position, reason)),
            )

    def read(self) -> Packet[VideoStream] | None:
        """Return the next packet, None at the end, once evidence of the damage before it has been sent."""
        packet = self._reader.read()
        if packet is not None and packet.pts is not None:
            end = packet.pts + (packet.duration or 0)
            self._end_pts = end if self._end_pts is None else max(end, self._end_pts)
        if not self._is_watching:
            return packet
        if packet is None and self._ending_zeros is not None:
            self.note(self._ending_zeros, _NO_DATA)
            self._ending_zeros = None
        position = None if packet is None else position_of(packet)
        reached = sys.maxsize if packet is None else position
        if self._walker is not None and reached is not None and (self._ahead or reached >= self._walks_at):
            try:
                # Let the walker go ahead of the packet, and take what it has found before it.
                if reached + _WALKERS_LEAD_BYTES < self._reader.header.file_bytes:
                    self._walker.walk_to(reached + _WALKERS_LEAD_BYTES)
                    self._walks_at = reached + _WALKING_STEP_BYTES
                elif not self._has_walked:
                    self._has_walked = True
                    self._walker.finish()
                while self._ahead and self._ahead[0][0] <= reached:
                    self._seen.append(heappop(self._ahead))
            except OSError:  # the demuxer meets it, too, and continues after it
                self._walker = None
        if self._reader.read_errors > self._read_errors:
            self._read_errors = self._reader.read_errors
            self._seen.append((position, "reading failed and went on after the damage"))
        # A whole packet may be marked as damaged only because another stream begins after it.
        is_damaged = (packet is not None and packet.is_corrupt) and not (
            isinstance(self._walker, MpegTsWalker) and position in self._walker.ends_at_joints
        )
        if is_damaged:
            self._seen.append((position, "the demuxer marks the packet as damaged"))
        for text in self._log.take(self._demuxer):
            if not _HARMLESS.search(text):
                self._seen.append((position, f"the demuxer says: {' '.join(text.split())}"))
        if self._seen:
            self._send()
        self._place += 1
        if self._is_bare and packet is not None:
            self._note_zeros(packet)
        return packet

    def leave_chain_unchecked(self) -> None:
        """Do without the walker, to measure what it costs."""
        self._walker = None

    def note(self, packet: Packet[VideoStream], reason: str) -> None:
        """Record evidence found in a packet that `read` has returned. It is sent with the next packet."""
        self._seen.append((position_of(packet), reason))

    def note_frame(self, reason: str) -> None:
        """Send evidence found in the frame that is sent next."""
        self._seen.append((None, reason))
        self._send()

    def finish(self, shown: int, *, lost: int, is_cut: bool = False, leading: int = 0) -> None:
        """Report how the pass ended, after `shown` frames.

        If they are fewer than the samples of the container's tables, check whether these can be right.
        """
        reader = self._reader
        self._from_byte = 0  # the tables may be at the file's start
        if found := disagreement(reader.descriptor, reader.header, reader.stream.index, shown):
            self._seen.append(found)
            self._send()
        claimed = reader.overlong_claim(self._end_pts)
        truncated = is_cut or reader.header.is_cut_short or claimed is not None
        end = IndexEnd(reader.read_errors, reader.gave_up, lost, truncated, leading, claimed)
        self._channel.send(Message.INDEX_END, end.pack())

    def _note_zeros(self, packet: Packet[VideoStream]) -> None:
        """Record it if the packet holds zeros where its kind of stream has none."""
        data = bytes(packet)
        at = data.find(_ZEROS)
        while at >= 0 and (after := _AFTER_ZEROS.search(data, at)):
            if after[0] != b"\1":
                self.note(packet, _NO_DATA)
                break
            at = data.find(_ZEROS, after.end())
        self._ending_zeros = packet if data.endswith(_ZEROS) else None

    def overlook(self) -> None:
        """Forget the errors that the reader met while it read known packets again."""
        self._log.take("")
        self._read_errors = self._reader.read_errors

    def _send(self) -> None:
        fresh = [seen for seen in self._seen if seen[0] is None or seen[0] >= self._from_byte]
        self._seen = []
        if fresh:
            self.before_sending()
            position, reason = min(fresh, key=lambda seen: seen[0] is None)
            reason = "".join(char if " " <= char <= "~" else "?" for char in reason)
            evidence = Evidence(self._place, position, len(fresh), reason)
            self._channel.send(Message.EVIDENCE, messages.pack_evidence(evidence))


def position_of(packet: Packet[VideoStream]) -> int | None:
    """Return where the packet is, in bytes into the file, if the demuxer knows."""
    return packet.pos if packet.pos is not None and packet.pos >= 0 else None
