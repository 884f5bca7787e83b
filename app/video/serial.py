"""In the child: frames counted as they come out, where time stamps do not tell them apart."""

from __future__ import annotations

from collections import deque

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from app.video import messages
from app.video.container import Channel, PacketReader, VideoRefused
from app.video.messages import CountRequest, Fault, FaultCode, IndexEnd, Message
from app.video.segments import Entry

_FRAMES_A_MESSAGE = 64


class SerialDecoder:
    """Decodes from an entry on, forward only, one frame at a time; goes on where it was left."""

    def __init__(
        self, reader: PacketReader, channel: Channel, entry: Entry, skipped: tuple[int, ...]
    ) -> None:
        """Raises VideoRefused if the entry cannot be found."""
        self._reader = reader
        self._channel = channel
        self._entry = entry
        self._skipped = frozenset(skipped)
        self._pending: deque[VideoFrame] = deque()
        self._packets = 0  # taken since the entry
        self._has_ended = False
        self.position = 0  # frames read since the entry
        self.rejected = 0  # packets that the decoder refused
        if not reader.move_to(entry):
            raise VideoRefused(Fault(FaultCode.ENTRY_NOT_FOUND))
        reader.stream.codec_context.flush_buffers()

    def leads_to(self, entry: Entry, skipped: tuple[int, ...], frames_before: int) -> bool:
        """Whether reading on gets to that frame; if so, from now on without the packets `skipped`."""
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
            self._feed()
        self.position += 1
        return self._pending.popleft()

    def _feed(self) -> None:
        packet = self._reader.read()
        if packet is None:
            self._has_ended = True
        else:
            self._packets += 1
            self._channel.show_fed(self._packets)
            if self._entry.ordinal + self._packets - 1 in self._skipped:
                return
        self._decode(packet)

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        try:
            self._pending += self._reader.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, OSError, ValueError):
            self.rejected += 1


class FrameCounter:
    """Sends the time stamp of every frame that comes out from an entry on."""

    def __init__(self, reader: PacketReader, channel: Channel, request: CountRequest) -> None:
        self._reader = reader
        self._channel = channel
        self._decoder = SerialDecoder(reader, channel, request.entry, request.skipped)

    def run(self) -> None:
        stamps: list[int | None] = []
        while (frame := self._decoder.read()) is not None:
            stamps.append(frame.pts)
            if len(stamps) == _FRAMES_A_MESSAGE:
                self._channel.send(Message.FRAMES, messages.pack_frames(stamps))
                stamps = []
        self._channel.send(Message.FRAMES, messages.pack_frames(stamps))
        reader = self._reader
        end = IndexEnd(reader.read_errors, reader.gave_up, self._decoder.rejected, truncated=False)
        self._channel.send(Message.INDEX_END, end.pack())
