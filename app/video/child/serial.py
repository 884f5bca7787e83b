"""Count frames as the decoder returns them, where time stamps do not identify them."""

from __future__ import annotations

from collections import deque

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from app.video.child.channel import Channel
from app.video.child.container import PacketReader
from app.video.child.fields import field_reader
from app.video.child.keyframes import HEAD_BYTES, KeyframeReader
from app.video.child.refusal import VideoRefused
from app.video.child.watch import PacketWatch
from app.video.protocol import messages
from app.video.protocol.messages import CountRequest, FaultCode, Message
from app.video.protocol.packets import MAX_REORDER, Displacement, Entry

_FRAMES_A_MESSAGE = 64


class SerialDecoder:
    """Decode from an entry on, forward only, one frame at a time."""

    def __init__(
        self, reader: PacketReader, channel: Channel, entry: Entry, skipped: tuple[int, ...]
    ) -> None:
        """Move the reader to `entry`. Raises VideoRefused if it cannot be found."""
        self._reader = reader
        self._channel = channel
        self._entry = entry
        self._skipped = frozenset(skipped)
        self._pending: deque[VideoFrame] = deque()
        self._packets = 0  # read since the entry
        self._has_ended = False
        self.position = 0  # frames read since the entry
        if not reader.move_to(entry):
            raise VideoRefused(FaultCode.ENTRY_NOT_FOUND)
        reader.stream.codec_context.flush_buffers()

    def leads_to(self, entry: Entry, skipped: tuple[int, ...], frames_before: int) -> bool:
        """Whether reading on gets to that frame. If so, leave out the packets `skipped` from now on."""
        reached = self._entry.ordinal + self._packets
        differ = self._skipped.symmetric_difference(skipped)
        if entry != self._entry or self.position > frames_before or any(p < reached for p in differ):
            return False
        self._skipped = frozenset(skipped)
        return True

    def read(self) -> VideoFrame | None:
        """Return the next frame, None at the end."""
        while not self._pending:
            if self._has_ended:
                return None
            packet = self.read_packet()
            self._has_ended = packet is None
            if packet is not None:
                self._packets += 1
                self._channel.show_fed(self._packets)
                if self._entry.ordinal + self._packets - 1 in self._skipped:
                    continue
            try:
                self._pending += self._reader.stream.codec_context.decode(packet)
            except (av.FFmpegError, OSError, ValueError):
                self.note_refusal()
        self.position += 1
        return self._pending.popleft()

    def read_packet(self) -> Packet[VideoStream] | None:
        """Return the next packet, None at the end."""
        return self._reader.read()

    def note_refusal(self) -> None:
        """Called when the decoder refuses a packet."""


class _StampOrder:
    """Replace time stamps by decoding times where the stamps run backward more often than these.

    FFmpeg does the same (libavcodec/decode.c, guess_correct_pts). The last frames have no decoding time, and
    get no time here.
    """

    def __init__(self) -> None:
        self._last_pts = -(2**63)
        self._last_dts: int | None = None
        self._pts_faults = self._dts_faults = 0

    def stamp_of(self, frame: VideoFrame) -> int | None:
        """Return the stamp of the next frame of a decoder."""
        if frame.dts is not None:
            self._dts_faults += self._last_dts is not None and frame.dts <= self._last_dts
            self._last_dts = frame.dts
        if frame.pts is not None:
            self._pts_faults += frame.pts <= self._last_pts
            self._last_pts = frame.pts
        is_right = self._last_dts is None or self._pts_faults <= self._dts_faults
        return frame.pts if is_right or frame.pts is None else frame.dts


class FrameCounter(SerialDecoder):
    """Send the time stamp of every frame from an entry on, and count the frames that should come."""

    def __init__(
        self, reader: PacketReader, watch: PacketWatch, channel: Channel, request: CountRequest
    ) -> None:
        super().__init__(reader, channel, request.entry, request.skipped)
        self._watch = watch
        context = reader.stream.codec_context
        self._keyframes = KeyframeReader(context.name, context.extradata)
        self._fields = field_reader(context.name, context.extradata)
        watch.overlook()  # on the way to the entry the container may have been reopened
        self._stamps: list[int | None] = []
        self._order = _StampOrder()
        self._expected = 0  # frames, according to the packets
        self._is_expected = False  # a frame of the last packet
        self._has_keyframe = False
        self._is_opening = False  # pictures that follow the first keyframe may need what the file lacks
        self._opening_pts: int | None = None  # of that keyframe
        rate, tick = reader.stream.average_rate, reader.stream.time_base
        self._displacement = Displacement(1 / (rate * tick) if rate and tick else None)
        self._leading: int | None = None  # frames before the first keyframe
        self._marked_at = -MAX_REORDER  # number of the last frame whose mark was reported
        watch.before_sending = self._send_stamps

    def run(self) -> None:
        while (frame := self.read()) is not None:
            position = self.position
            if self._leading is None and frame.key_frame:
                self._leading = position - 1
            if (
                frame.is_corrupt
                and self._leading is not None
                and position - self._marked_at >= MAX_REORDER  # one in 16: there may be no other evidence
            ):
                self._marked_at = position
                self._watch.note_frame("the decoder marks the picture as damaged")
            self._stamps.append(self._order.stamp_of(frame))
            if len(self._stamps) == _FRAMES_A_MESSAGE:
                self._send_stamps()
        self._send_stamps()
        first, expected = self._entry.ordinal, self._expected
        if self._reader.header.has_sample_tables:  # samples in the tables that could not be read count, too
            expected += max(0, len(self._reader.stream.index_entries) - first - self._packets)
        leading = self._leading or 0 if first == 0 else 0
        self._watch.finish(first + self.position, lost=max(0, expected - self.position), leading=leading)

    def note_refusal(self) -> None:
        if self._is_expected and self._leading is not None:
            self._watch.note_frame("the decoder refuses the data")

    def read_packet(self) -> Packet[VideoStream] | None:
        packet = self._watch.read()
        if packet is not None:
            self._is_expected = self._gives_frame(packet)  # which may reset the count
            self._expected += self._is_expected
        return packet

    def _gives_frame(self, packet: Packet[VideoStream]) -> bool:
        """Whether the decoder must give a frame for the packet."""
        data = bytes(packet)
        is_displaced = self._displacement.is_seen(packet.pts, packet.dts)
        is_cut_away = packet.is_discard and not is_displaced
        is_second_field = self._fields.is_second_field(data, is_key=packet.is_keyframe)
        if reason := self._fields.missing_reference(data):
            self._watch.note(packet, reason)
        if packet.is_keyframe and not self._has_keyframe and not self.position:
            self._expected, self._is_opening = 0, True  # a stream may begin with what cannot be decoded
            self._opening_pts = packet.pts
        elif self._is_opening and not is_second_field:
            key_pts = self._opening_pts
            is_leading = packet.pts is not None and key_pts is not None and packet.pts < key_pts
            self._is_opening = is_leading or self._keyframes.may_need_earlier(data[:HEAD_BYTES])
            if self._is_opening:
                return False
        self._has_keyframe |= packet.is_keyframe
        is_never_shown = self._keyframes.is_never_shown(data, is_split=self._reader.splits_stream)
        return not (is_cut_away or is_second_field or is_never_shown)

    def _send_stamps(self) -> None:
        if self._stamps:
            self._channel.send(Message.FRAMES, messages.pack_frames(self._stamps))
            self._stamps = []
