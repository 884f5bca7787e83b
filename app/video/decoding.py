"""In the child: one stretch of a segment, from packets to pictures in the ring."""

from __future__ import annotations

from collections import deque

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from app.video.container import Channel, PacketReader
from app.video.messages import BatchMessage, Command, DecodeRequest, FrameStatus, Message
from app.video.picture import PictureMaker, displayed_size
from app.video.serial import SerialDecoder


class BatchWriter:
    """Fills slots of the ring with pictures and announces the full ones; waits for the engine to free one."""

    def __init__(self, channel: Channel, ring: npt.NDArray[np.uint8], request: DecodeRequest) -> None:
        self._channel = channel
        self._request = request
        shape = (request.slot_count, request.batch_size, request.height, request.width, 3)
        self._slots = ring[: request.slot_count * request.batch_size * request.frame_bytes].reshape(shape)
        self._free = deque(range(request.slot_count))
        self._maker = PictureMaker(request.width, request.height)
        self._source = (0, 0)
        self._pts: list[int] = []
        self._ranks: list[int] = []

    def add(self, frame: VideoFrame, pts: int, rank: int) -> None:
        """Put the frame into the ring. A frame of another source size opens a new batch."""
        source = displayed_size(frame)
        if source != self._source:
            self.flush()
            self._source = source
        if not self._free:
            self._wait_for_slot()
        self._maker.draw(frame, self._slots[self._free[0], len(self._ranks)])
        self._pts.append(pts)
        self._ranks.append(rank)
        if len(self._ranks) == self._request.batch_size:
            self.flush()

    def flush(self) -> None:
        """Announce the open batch, if it holds anything."""
        if not self._ranks:
            return
        message = BatchMessage(self._free.popleft(), *self._source, tuple(self._pts), tuple(self._ranks))
        self._pts, self._ranks = [], []
        self._channel.send(Message.BATCH, message.pack())

    def _wait_for_slot(self) -> None:
        kind, payload = self._channel.receive()
        if kind is not Command.RELEASE:
            raise EOFError
        self._free.append(int.from_bytes(payload, "little"))

    def wait_for_all(self) -> None:
        """Return once the engine has freed every slot: the next stretch may lay them out anew."""
        while len(self._free) < self._request.slot_count:
            self._wait_for_slot()


class _Account:
    """What became of a request's frames, and which of them are still to be delivered."""

    def __init__(self, channel: Channel, ring: npt.NDArray[np.uint8], request: DecodeRequest) -> None:
        self._channel = channel
        self._request = request
        self._writer = BatchWriter(channel, ring, request)
        self._last_rank = -1
        self.statuses = np.zeros(len(request.pts), dtype=np.uint8)
        self.left = int(np.count_nonzero(request.wanted))

    def take(self, frame: VideoFrame, rank: int) -> None:
        """Take note of a decoded frame, and deliver it if it is wanted. Forward only."""
        if rank <= self._last_rank:
            return
        self._last_rank = rank
        self.statuses[rank] = FrameStatus.CORRUPT if frame.is_corrupt else FrameStatus.DECODED
        if self._request.wanted[rank]:
            self.left -= 1
            self._writer.add(frame, int(self._request.pts[rank]), rank)

    def mark_absent(self) -> None:
        """Take note that the file has no data for the frames of which nothing was seen."""
        self.statuses[self.statuses == FrameStatus.NOT_SEEN] = FrameStatus.NO_PACKET

    def finish(self) -> None:
        self._writer.flush()
        self._channel.send(Message.SEGMENT_END, self.statuses.tobytes())
        self._writer.wait_for_all()


class MatchingDecoder:
    """Decodes one request whose frames are known by their time stamps."""

    def __init__(
        self, reader: PacketReader, channel: Channel, ring: npt.NDArray[np.uint8], request: DecodeRequest
    ) -> None:
        self._reader = reader
        self._channel = channel
        self._request = request
        self._account = _Account(channel, ring, request)
        self._leaves_out = False

    def run(self) -> None:
        if self._reader.move_to(self._request.entry):
            self._reader.stream.codec_context.flush_buffers()
            self._feed_all()
        else:
            self._account.mark_absent()
        self._pass_over_references_of_none(is_unwanted=False)
        self._account.finish()

    def _feed_all(self) -> None:
        count = 0
        while count < self._request.packet_count and self._account.left:
            packet = self._reader.read()
            if packet is None:
                self._account.mark_absent()
                break
            count += 1
            self._channel.show_fed(count)
            self._feed(packet, self._request.entry.ordinal + count - 1)
        if self._account.left:
            self._decode(None, -1)

    def _feed(self, packet: Packet[VideoStream], ordinal: int) -> None:
        rank = self._rank(packet.pts)
        self._pass_over_references_of_none(is_unwanted=rank < 0 or not self._request.wanted[rank])
        if ordinal not in self._request.skipped:
            self._decode(packet, rank)
        elif rank >= 0:
            self._account.statuses[rank] = FrameStatus.SKIPPED

    def _pass_over_references_of_none(self, *, is_unwanted: bool) -> None:
        """Let the decoder leave out the next picture if it is unwanted and no other needs it."""
        if is_unwanted != self._leaves_out:
            self._leaves_out = is_unwanted
            self._reader.stream.codec_context.skip_frame = "NONREF" if is_unwanted else "DEFAULT"

    def _decode(self, packet: Packet[VideoStream] | None, rank: int) -> None:
        if rank >= 0:
            self._account.statuses[rank] = FrameStatus.NOT_SHOWN
        try:
            frames = self._reader.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, OSError, ValueError):
            if rank >= 0:
                self._account.statuses[rank] = FrameStatus.REJECTED
            return
        for frame in frames:
            self._account.take(frame, self._rank(frame.pts))

    def _rank(self, pts: int | None) -> int:
        """The position of a time stamp among the request's frames; -1 if it is none of them."""
        if pts is None:
            return -1
        rank = int(np.searchsorted(self._request.pts, pts))
        return rank if rank < len(self._request.pts) and self._request.pts[rank] == pts else -1


class CountingDecoder:
    """Decodes one request whose frames are known by their place in what comes out of the decoder."""

    def __init__(
        self, serial: SerialDecoder, channel: Channel, ring: npt.NDArray[np.uint8], request: DecodeRequest
    ) -> None:
        self._serial = serial
        self._request = request
        self._account = _Account(channel, ring, request)

    def run(self) -> None:
        before = self._request.frames_before or 0
        while self._serial.position < before + len(self._request.pts) and self._account.left:
            frame = self._serial.read()
            if frame is None:
                break
            rank = self._serial.position - 1 - before
            if rank >= 0:
                self._account.take(frame, rank)
        self._account.finish()
