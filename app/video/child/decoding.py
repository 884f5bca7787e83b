"""Decode one request: from packets to pictures in the ring."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from app.video.child.channel import Channel, SharedPictures
from app.video.child.container import PacketReader, has_room
from app.video.child.fields import field_reader
from app.video.child.picture import PictureMaker, displayed_size
from app.video.child.serial import SerialDecoder
from app.video.protocol.messages import BatchMessage, Command, DecodeRequest, FrameStatus, Message

_MOST_WAITING = 8  # frames
_WAITING_BYTES = 64 * 1024 * 1024
_MOST_BYTES_A_PIXEL = 4  # of common formats: 4:2:2 at 10 bits
_HAS_COME = (FrameStatus.DECODED, FrameStatus.CORRUPT, FrameStatus.OUT_OF_ORDER)


class Picture(NamedTuple):
    """A frame as it is delivered."""

    pixels: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    source_size: tuple[int, int]


class Delivery:
    """Draw a request's wanted frames into slots of the ring, announce the full ones, and keep all statuses.

    Frames are delivered in the order of their ranks. If the next one is late, a few later ones wait for it:
    wrong time stamps, from damage or a bad writer, make decoders return frames in another order.
    """

    def __init__(self, channel: Channel, ring: SharedPictures, request: DecodeRequest) -> None:
        self._channel = channel
        self._ring = ring
        self._request = request
        self._maker = PictureMaker(request.width, request.height)
        shape = (request.slot_count, request.batch_size, request.height, request.width, 3)
        self._slots = ring.pixels[: math.prod(shape)].reshape(shape)
        self._free = deque(range(request.slot_count))  # slots; the first is being filled
        self._source = (0, 0)  # size of the frames in the open batch
        self._pts: list[int] = []  # of the frames in it
        self._ranks: list[int] = []
        self._due = deque(np.flatnonzero(request.wanted).tolist())  # wanted ranks, not delivered yet
        self._waiting: dict[int, Picture] = {}
        self._most_waiting = max(1, min(_MOST_WAITING, _WAITING_BYTES // request.frame_bytes))
        self.statuses = np.zeros(len(request.pts), dtype=np.uint8)
        self.left = len(self._due)  # wanted frames that have not come

    def take(self, frame: VideoFrame, rank: int) -> None:
        """Record a decoded frame, and deliver it if it is wanted."""
        if rank < 0 or self.statuses[rank] in _HAS_COME:
            return
        if not self._request.wanted[rank]:
            self.statuses[rank] = FrameStatus.DECODED
            return
        if not self._due or rank < self._due[0]:
            self.statuses[rank] = FrameStatus.OUT_OF_ORDER
            return
        self.left -= 1
        self.statuses[rank] = FrameStatus.CORRUPT if frame.is_corrupt else FrameStatus.DECODED
        size = displayed_size(frame)
        if rank == self._due[0] and not self._waiting:
            self._due.popleft()
            self._maker.draw(frame, self._next_place(size))
            self._take_place(rank)
            return
        pixels = np.empty((self._request.height, self._request.width, 3), dtype=np.uint8)
        self._maker.draw(frame, pixels)
        self._waiting[rank] = Picture(pixels, size)
        while self._waiting and (self._due[0] in self._waiting or len(self._waiting) > self._most_waiting):
            self._deliver_first()

    def _deliver_first(self) -> None:
        rank = min(self._waiting)
        while self._due.popleft() != rank:
            pass  # given up: it came too late, or never
        picture = self._waiting.pop(rank)
        np.copyto(self._next_place(picture.source_size), picture.pixels)
        self._take_place(rank)

    def _next_place(self, source_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Return where the next picture belongs. A frame of another source size starts a new batch."""
        if source_size != self._source:
            self.flush()
            self._source = source_size
        if not self._free:
            self._wait_for_slot()
        slot, place = self._free[0], len(self._ranks)
        self._ring.prepare((slot * self._request.batch_size + place + 1) * self._request.frame_bytes)
        pixels: npt.NDArray[np.uint8] = self._slots[slot, place]
        return pixels

    def _take_place(self, rank: int) -> None:
        self._pts.append(int(self._request.pts[rank]))
        self._ranks.append(rank)
        if len(self._ranks) == self._request.batch_size:
            self.flush()

    def flush(self) -> None:
        """Announce the open batch, unless it is empty."""
        if not self._ranks:
            return
        message = BatchMessage(self._free.popleft(), *self._source, tuple(self._pts), tuple(self._ranks))
        self._pts, self._ranks = [], []
        self._channel.send(Message.BATCH, message.pack())

    def _wait_for_slot(self) -> None:
        kind, payload = self._channel.receive()
        if kind is not Command.RELEASE:
            raise EOFError
        self._free.appendleft(int.from_bytes(payload, "little"))  # used next: its pages exist already

    def finish(self) -> None:
        """Deliver what waits, and return once all slots are free: the next request may lay them out anew."""
        while self._waiting:
            self._deliver_first()
        self.flush()
        self._channel.send(Message.SEGMENT_END, self.statuses.tobytes())
        while len(self._free) < self._request.slot_count:
            self._wait_for_slot()


class MatchingDecoder:
    """Decode one request whose frames are identified by their time stamps."""

    def __init__(
        self, reader: PacketReader, channel: Channel, ring: SharedPictures, request: DecodeRequest
    ) -> None:
        self._reader = reader
        self._channel = channel
        self._request = request
        self._delivery = Delivery(channel, ring, request)
        self._leaves_out = False
        context = reader.stream.codec_context
        self._fields = field_reader(context.name, context.extradata)

    def run(self) -> None:
        request, statuses, count = self._request, self._delivery.statuses, 0
        if self._reader.move_to(request.entry):
            self._reader.stream.codec_context.flush_buffers()
            while count < request.packet_count and self._delivery.left:
                packet = self._reader.read()
                if packet is None:
                    statuses[statuses == FrameStatus.NOT_SEEN] = self._unless_starved(FrameStatus.NO_PACKET)
                    break
                count += 1
                self._channel.show_fed(count)
                rank = self._rank(packet.pts)
                is_second = self._fields.is_second_field(memoryview(packet), is_key=packet.is_keyframe)
                if not is_second:  # which is treated as the first: a frame needs both
                    self._drop_unneeded(is_unwanted=rank < 0 or not request.wanted[rank])
                if request.entry.ordinal + count - 1 not in request.skipped:
                    self._decode(packet, rank)
                elif rank >= 0:
                    statuses[rank] = FrameStatus.SKIPPED
            if self._delivery.left:
                self._decode(None, -1)
        else:
            statuses[:] = FrameStatus.NO_PACKET
        self._drop_unneeded(is_unwanted=False)
        self._delivery.finish()

    def _drop_unneeded(self, *, is_unwanted: bool) -> None:
        """Let the decoder drop the next picture if it is unwanted and no other picture needs it."""
        if is_unwanted != self._leaves_out:
            self._leaves_out = is_unwanted
            self._reader.stream.codec_context.skip_frame = "NONREF" if is_unwanted else "DEFAULT"

    def _decode(self, packet: Packet[VideoStream] | None, rank: int) -> None:
        if rank >= 0:
            self._delivery.statuses[rank] = FrameStatus.NOT_SHOWN
        try:
            frames = self._reader.stream.codec_context.decode(packet)
        except MemoryError:
            self._give_up(rank, FrameStatus.OUT_OF_MEMORY)
            return
        except (av.FFmpegError, OSError, ValueError):
            self._give_up(rank, self._unless_starved(FrameStatus.REJECTED))
            return
        for frame in frames:
            self._delivery.take(frame, self._rank(frame.pts))

    def _unless_starved(self, status: FrameStatus) -> FrameStatus:
        """Return `status`, or OUT_OF_MEMORY if there is no room for another picture."""
        context = self._reader.stream.codec_context
        fits = has_room(context.width * context.height * _MOST_BYTES_A_PIXEL)
        return status if fits else FrameStatus.OUT_OF_MEMORY

    def _give_up(self, rank: int, status: FrameStatus) -> None:
        """Record why no frame came. Raises MemoryError if fewer threads may need less memory."""
        if status is FrameStatus.OUT_OF_MEMORY and self._reader.stream.codec_context.thread_count > 1:
            raise MemoryError
        if rank >= 0:
            self._delivery.statuses[rank] = status

    def _rank(self, pts: int | None) -> int:
        """Return the position of a time stamp among the request's frames; -1 if it is not one of them."""
        if pts is None:
            return -1
        rank = int(np.searchsorted(self._request.pts, pts))
        return rank if rank < len(self._request.pts) and self._request.pts[rank] == pts else -1


def decode_by_counting(
    serial: SerialDecoder, channel: Channel, ring: SharedPictures, request: DecodeRequest
) -> None:
    """Decode one request whose frames are identified by counting what the decoder returns."""
    delivery = Delivery(channel, ring, request)
    before = request.frames_before or 0
    while serial.position < before + len(request.pts) and delivery.left:
        frame = serial.read()
        if frame is None:
            break
        delivery.take(frame, serial.position - 1 - before)
    delivery.finish()
