"""One pass over a video's packets: the facts from its first frame, then a record of every packet."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from app.video.child.channel import Channel
from app.video.child.container import PacketReader, has_room
from app.video.child.ffmpeg_log import captured
from app.video.child.fields import field_reader
from app.video.child.keyframes import SEARCHED_BYTES, KeyframeReader
from app.video.child.movie_index import MovieIndex
from app.video.child.picture import displayed_size, orientation_of
from app.video.child.refusal import VideoRefused, check_limit, check_size
from app.video.child.watch import PacketWatch, position_of
from app.video.protocol import messages
from app.video.protocol.facts import VideoFacts
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import FaultCode, FoundVideo, Message
from app.video.protocol.packets import PacketFlag, PacketRecord

_RECORDS_A_MESSAGE = 512
_MAX_PACKETS_BEFORE_FIRST_FRAME = 5000
_PACKETS_TO_SEE_AN_ORDER = 64  # encoders that reorder pictures do so in the first seconds
_PACKETS_ASKED_FOR_A_SIZE = 20
_LARGE_PICTURE_PIXELS = 1920 * 1088
_ROOM_TO_READ_BYTES = 4 * 1024 * 1024  # beside packets; with less, a read may fail and look like the end
_TOO_LARGE = re.compile(r"Picture size (\d{1,9})x(\d{1,9}) exceeds")


class Indexer:
    """Send the facts as soon as a first frame is decoded, then a record of every packet."""

    def __init__(
        self, reader: PacketReader, watch: PacketWatch, channel: Channel, limits: VideoLimits
    ) -> None:
        self._reader = reader
        self._watch = watch
        self._channel = channel
        self._limits = limits
        context = reader.stream.codec_context
        self._keyframes = KeyframeReader(context.name, context.extradata)
        self._fields = field_reader(context.name, context.extradata)
        self._records: list[PacketRecord] = []
        self._ordinal = 0
        self._shown = 0  # frames
        self._has_told_facts = False
        self._has_stamps = True  # that say when frames are shown
        self._movie = MovieIndex(reader, self._keyframes, self._fields)

    def run(self) -> None:
        """Index the video. Raises VideoRefused if nothing in it can be decoded, or it exceeds a limit."""
        frame = self._find_first_frame()
        if self._has_made_up_stamps(frame):
            self._has_stamps = False
            self._records = [record._replace(pts=None) for record in self._records]
        self._channel.send(Message.FACTS, messages.pack_facts(self._found(frame)))
        self._has_told_facts = True
        is_large = frame.width * frame.height > _LARGE_PICTURE_PIXELS
        del frame
        skips = self._movie.can_replace_reading and self._has_stamps
        if skips:
            if is_large:
                self._reader.reopen()
            for record in self._movie.records_from(self._ordinal):
                self._add(record)
        if not skips or not self._movie.can_replace_reading:
            if is_large or skips:  # give the decoder's memory back: the rest of the pass does not decode
                self._reader.reopen()
                for _ in range(self._ordinal):
                    self._reader.read()
                self._watch.overlook()
            largest_bytes = 0
            while (packet := self._watch.read()) is not None:
                self._record(packet)
                largest_bytes = max(largest_bytes, packet.size)
            if not has_room(2 * largest_bytes + _ROOM_TO_READ_BYTES):
                raise VideoRefused(FaultCode.OUT_OF_MEMORY)
        lost = max(0, len(self._movie) - self._ordinal)
        for record in self._movie.records_lost_from(self._ordinal):
            self._add(record)
        self._send_records()
        is_cut = lost > 0 or self._movie.ends_inside(self._ordinal - 1)
        self._watch.finish(self._shown, lost=lost, is_cut=is_cut)

    def _has_made_up_stamps(self, first: VideoFrame) -> bool:
        """Whether time stamps follow the order of decoding, although frames are shown in another order.

        FFmpeg makes such stamps for MXF without temporal offsets, and writes them when it copies AVI to MP4.
        So this tests whether stamps rise from packet to packet, but not from frame to frame of the decoder.
        """
        context = self._reader.stream.codec_context
        if not context.has_b_frames:
            return False
        is_mxf = self._reader.container.format.name == "mxf"
        if is_mxf and all(record.pts == record.dts for record in self._records):
            return True
        shown = [first]
        for _ in range(_PACKETS_TO_SEE_AN_ORDER):
            if not _all_rise(record.pts for record in self._records):
                return False
            if not _all_rise(frame.pts for frame in shown):
                return True
            packet = self._watch.read()
            if packet is None:
                return False
            self._record(packet)
            with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                shown = [shown[-1], *context.decode(packet)]
        return False

    def _find_first_frame(self) -> VideoFrame:
        context = self._reader.stream.codec_context
        for _ in range(_MAX_PACKETS_BEFORE_FIRST_FRAME):
            packet = self._watch.read()
            if packet is not None:
                self._record(packet)
            try:
                frames = context.decode(packet)
            except MemoryError:
                raise
            except (av.FFmpegError, OSError, ValueError):
                frames = []
            if frames:
                return frames[0]
            if packet is None:
                break
        if not has_room(context.width * context.height * 4):
            raise VideoRefused(FaultCode.OUT_OF_MEMORY)
        # FFmpeg's log shows if no frame came because frames have too many pixels.
        self._reader.reopen()
        with captured(av.logging.ERROR) as log:
            for _ in range(_PACKETS_ASKED_FOR_A_SIZE):
                packet = self._reader.read()
                with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                    self._reader.stream.codec_context.decode(packet)
                if packet is None:
                    break
        for _, _, text in log:
            if found := _TOO_LARGE.search(text):
                check_size(int(found[1]), int(found[2]), self._limits)
        raise VideoRefused(FaultCode.NOTHING_DECODABLE)

    def _record(self, packet: Packet[VideoStream]) -> None:
        data = memoryview(packet)
        flags = PacketFlag(0)
        is_second_field = self._fields.is_second_field(data, is_key=packet.is_keyframe)
        if packet.is_keyframe and not is_second_field:  # decoding cannot enter in the middle of a frame
            flags |= PacketFlag.KEY
            if self._keyframes.is_clean_entry(bytes(data[:SEARCHED_BYTES]), len(data)):
                flags |= PacketFlag.CLEAN
        is_never_shown = self._keyframes.is_never_shown(data, is_split=self._reader.splits_stream)
        if packet.is_discard or is_second_field or is_never_shown:
            flags |= PacketFlag.DISCARD
        pts = packet.pts if self._has_stamps else None
        record = PacketRecord(self._ordinal, pts, packet.dts, position_of(packet), packet.size, flags)
        self._add(record)
        self._movie.check(record)

    def _add(self, record: PacketRecord) -> None:
        self._records.append(record)
        self._ordinal += 1
        self._shown += not record.flags & PacketFlag.DISCARD
        check_limit("max_frames", self._limits.max_frames, self._ordinal)
        if self._has_told_facts and len(self._records) >= _RECORDS_A_MESSAGE:
            self._send_records()

    def _send_records(self) -> None:
        if self._records:
            self._channel.send(Message.PACKETS, messages.pack_packets(self._records))
            self._records = []

    def _found(self, frame: VideoFrame) -> FoundVideo:
        stream = self._reader.stream
        check_size(frame.width, frame.height, self._limits)
        width, height = displayed_size(frame)
        orientation = orientation_of(frame)
        facts = VideoFacts(
            container=self._reader.container.format.name.split(",")[0],
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            width=width,
            height=height,
            rotation_degrees=orientation.rotation_degrees,
            mirrored=orientation.mirrored,
            time_base=_positive(stream.time_base) or Fraction(1, 1000),
            frame_rate=_positive(stream.average_rate),
            duration_seconds=self._reader.claimed_seconds,
            stream_index=stream.index,
            sample_aspect_ratio=_positive(stream.sample_aspect_ratio) or Fraction(1),
            other_streams=self._reader.other_streams,
        )
        return FoundVideo(facts, frame.pts, self._movie.is_movie)


def _positive(value: Fraction | None) -> Fraction | None:
    """Return `value` if it is a usable rate, else None: containers also declare 0/0 and -1/1."""
    return value if value is not None and value > 0 else None


def _all_rise(stamps: Iterable[int | None]) -> bool:
    """Whether each stamp is known and greater than the one before."""
    return all(
        before is not None and after is not None and before < after for before, after in pairwise(stamps)
    )
