"""Opening a video safely, choosing its stream, and reading packets past damage."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import av.subtitles.codeccontext  # PyAV imports these three as a container asks for them, which is too late
import av.subtitles.stream
import av.subtitles.subtitle
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from app.video.child.channel import Channel
from app.video.child.codecs import DECODERS, DEMUXERS
from app.video.child.encryption import is_encrypted
from app.video.child.ffmpeg_log import captured
from app.video.child.headers import Header, read_header
from app.video.child.refusal import VideoRefused, check_limit, check_size
from app.video.child.streams import choose_among, codec_name, other_streams, real_video_streams
from app.video.child.walkers.matroska import EBML_HEADER
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Fault, FaultCode
from app.video.protocol.packets import Entry

_PROBE_BYTES = 8 * 1024 * 1024
_PROBE_MICROSECONDS = 10_000_000
_MAX_READ_ERRORS = 1000
_GXF_END = bytes.fromhex("0000000001fb0000001000000000e1e2")  # SMPTE 360M: the packet that ends a stream
_NEVER_WRITTEN = 0xFFFFFFFF  # a placeholder for the duration in IVF that was written to a pipe
_GENERATE_PTS = 0x0001  # AVFMT_FLAG_GENPTS, which PyAV sets: made-up time stamps can be in another order
_STREAMS_TO_SPLIT = frozenset(("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v"))
_NEAR_PACKETS = 64  # skipping that many by reading costs no more than a seek
_SEARCHED_PACKETS = 4096  # after a seek, for the entry
_SEEKS_BY_BYTE = ("mpegts", "mpeg", "mpegvideo")
_UNREADABLE = (av.FFmpegError, OSError, ValueError, AttributeError)  # raised by PyAV as it opens a file


@dataclass(frozen=True, slots=True)
class OpenOptions:
    descriptor: int  # of the video; its offset moves, so nothing else may share it
    threads: int
    limits: VideoLimits


def open_container(options: OpenOptions) -> InputContainer:
    """Open the video, from its start. Raises VideoRefused."""
    limits = options.limits
    av_options = {
        "fd": str(options.descriptor),
        "protocol_whitelist": "fd",
        "format_whitelist": ",".join(DEMUXERS),
        "codec_whitelist": ",".join(sorted(DECODERS)),
        "max_pixels": str(limits.max_pixels),
        "max_streams": str(limits.max_streams),
        "probesize": str(_PROBE_BYTES),
        "analyzeduration": str(_PROBE_MICROSECONDS),
        "threads": "1",
    }

    def open_from_start() -> InputContainer:
        os.lseek(options.descriptor, 0, os.SEEK_SET)
        return av.open("fd:", mode="r", metadata_errors="replace", options=av_options)

    try:
        return open_from_start()
    except MemoryError as error:
        raise VideoRefused(FaultCode.OUT_OF_MEMORY) from error
    except _UNREADABLE as error:
        # It may have too many streams: only FFmpeg's log shows it.
        with captured(av.logging.ERROR) as log, contextlib.suppress(*_UNREADABLE):
            open_from_start().close()
        if any("max_streams" in text for _, _, text in log):
            check_limit("max_streams", limits.max_streams, limits.max_streams + 1)
        raise VideoRefused(FaultCode.UNSUPPORTED) from error


def has_room(byte_count: int) -> bool:
    """Whether `byte_count` more bytes can be had: FFmpeg calls a lack of memory damage, or the file's end."""
    try:
        np.empty(byte_count, dtype=np.uint8)
    except MemoryError:
        return False
    return True


class PacketReader:
    """The chosen stream's packets, in the container's order, from any entry of the index on."""

    def __init__(
        self,
        options: OpenOptions,
        channel: Channel,
        before_opening: Callable[[Header], None] = lambda _header: None,
    ) -> None:
        self._options = options
        self._channel = channel
        self._packets_read = 0
        self.header = read_header(options.descriptor, options.limits)
        if self.header.is_still_image:
            raise VideoRefused(FaultCode.UNSUPPORTED)
        before_opening(self.header)
        container = self._open()
        check_limit("max_streams", options.limits.max_streams, len(container.streams))
        candidates = real_video_streams(container)
        if not candidates:
            raise VideoRefused(FaultCode.NO_VIDEO_STREAM)
        chosen = candidates[0] if len(candidates) == 1 else choose_among(container, candidates)
        if is_encrypted(chosen, container.format.name, self.header, options.descriptor):
            raise VideoRefused(FaultCode.ENCRYPTED)
        self._stream_index = chosen.index
        self.other_streams = other_streams(container, chosen.index)
        if len(candidates) > 1:  # packets were read to choose among them
            container.close()
            container = self._open()
        self._begin(container)

    def _open(self) -> InputContainer:
        with self._channel.show_opening():
            return open_container(self._options)

    def _begin(self, container: InputContainer) -> None:
        """Set up the chosen stream and its decoder, and have FFmpeg skip all others. Raises VideoRefused."""
        limits, threads, index = self._options.limits, self._options.threads, self._stream_index
        stream = container.streams[index] if index < len(container.streams) else None
        if not isinstance(stream, VideoStream):
            raise VideoRefused(FaultCode.NO_VIDEO_STREAM)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        context = stream.codec_context
        if context is None or context.codec.name not in DECODERS:
            name, supported = codec_name(container, stream), tuple(sorted(DECODERS))
            raise VideoRefused(Fault(FaultCode.UNSUPPORTED_CODEC, codec=name, supported_codecs=supported))
        check_size(context.width, context.height, limits)
        container.flags &= ~_GENERATE_PTS
        self.container, self.stream = container, stream
        context.options = {"max_pixels": str(limits.max_pixels)}  # a bound that the first packet must meet
        context.thread_count = threads
        context.thread_type = ThreadType.FRAME if threads > 1 else ThreadType.NONE
        self._packets: Iterator[Packet[VideoStream]] = self.container.demux(self.stream)
        self._pushed_back: Packet[VideoStream] | None = None
        self.ordinal: int | None = 0  # of the packet that `read` returns next; None if unknown
        self.read_errors = 0  # in this pass: each pass over a damaged file meets the same errors
        self.gave_up = False

    @property
    def splits_stream(self) -> bool:
        """Whether FFmpeg splits the stream into packets, because the container does not."""
        return self.container.format.name in _STREAMS_TO_SPLIT

    @property
    def descriptor(self) -> int:
        """The video's descriptor, for reading by position. Its offset belongs to FFmpeg."""
        return self._options.descriptor

    @property
    def claimed_seconds(self) -> float | None:
        """The duration that the container claims for the video, or for all of its streams together."""
        stream, container = self.stream, self.container
        if stream.duration == _NEVER_WRITTEN:
            return None
        if stream.duration is not None and stream.time_base is not None and stream.duration >= 0:
            return float(stream.duration * stream.time_base)
        if container.duration is not None and container.duration >= 0:
            return container.duration / av.time_base
        return None

    def overlong_claim(self, end_pts: int | None) -> float | None:
        """Return the claimed duration if the video is the only stream and ends well before it; else None.

        Containers count it from zero or from the first time stamp. Sample tables are more exact.
        """
        stream, claimed = self.stream, self.claimed_seconds
        is_only_stream = len(self.container.streams) == 1 and not self.header.has_sample_tables
        if claimed is None or not is_only_stream or end_pts is None or stream.time_base is None:
            return None
        end = float((end_pts - min(0, stream.start_time or 0)) * stream.time_base)
        return claimed if claimed - end > max(2.0, claimed / 50) else None

    def close(self) -> None:
        self.container.close()

    def reopen(self) -> None:
        """Start again at the beginning of the video, with a new decoder. Raises VideoRefused."""
        self.close()
        del self.container, self.stream, self._packets
        gc.collect()  # streams and containers refer to each other: the old decoder's frames would stay
        self._begin(self._open())

    def read(self) -> Packet[VideoStream] | None:
        """Return the next packet, or None at the end. A failing read is retried, up to a limit per pass."""
        packet = self._pushed_back or self._demux()
        self._pushed_back = None
        if packet is not None and self.ordinal is not None:
            self.ordinal += 1
        return packet

    def _demux(self) -> Packet[VideoStream] | None:
        while self.read_errors < _MAX_READ_ERRORS:
            try:
                packet = next(self._packets)
            except (StopIteration, IndexError):  # PyAV 18.1 raises it at the end if streams were found late
                return None
            except (av.FFmpegError, OSError):
                end = self.header.file_bytes
                if (  # after the end mark of a GXF, FFmpeg fails to read another packet
                    self.container.format.name == "gxf"
                    and os.lseek(self.descriptor, 0, os.SEEK_CUR) == end
                    and os.pread(self.descriptor, len(_GXF_END), end - len(_GXF_END)) == _GXF_END
                ):
                    return None
                self.read_errors += 1
                self._packets = self.container.demux(self.stream)
                continue
            self._packets_read += 1
            self._channel.show_read(self._packets_read)
            is_flush = packet.size == 0 and packet.dts is None and packet.pts is None
            return None if is_flush else packet
        self.gave_up = True
        return None

    def move_to(self, entry: Entry) -> bool:
        """Make `read` return the packet of `entry` next. False if the video does not hold it."""
        if self.ordinal == entry.ordinal:
            return True
        if self._skip_forward(entry, at_most=_NEAR_PACKETS):
            return True
        end = self.header.declared_bytes
        is_joined = (  # one Matroska file follows another: a seek may make FFmpeg stop where one ends
            self.container.format.name.startswith("matroska")
            and end is not None
            and os.pread(self.descriptor, 4, end) == EBML_HEADER
        )
        if entry.ordinal > _NEAR_PACKETS and not is_joined and self._seek(entry):
            return True
        self.reopen()
        return self._skip_forward(entry, at_most=entry.ordinal)

    def _skip_forward(self, entry: Entry, *, at_most: int) -> bool:
        if self.ordinal is None or not 0 <= entry.ordinal - self.ordinal <= at_most:
            return False
        while self.ordinal < entry.ordinal:
            if self.read() is None:
                return False
        return True

    def _seek(self, entry: Entry) -> bool:
        name = self.container.format.name
        try:
            if name in _SEEKS_BY_BYTE and entry.position is not None:
                self.container.seek(entry.position, stream=self.stream, unsupported_byte_offset=True)
            else:
                stamp = entry.pts if "mov" in name or entry.dts is None else entry.dts
                if stamp is None:
                    return False
                self.container.seek(stamp, stream=self.stream)
        except (av.FFmpegError, OSError, ValueError, OverflowError):
            return False
        self._packets = self.container.demux(self.stream)
        self._pushed_back = None
        self.ordinal = None
        self.read_errors, self.gave_up = 0, False
        for _ in range(_SEARCHED_PACKETS):
            packet = self._demux()
            if packet is None:
                return False
            is_same = (packet.pts, packet.size) == (entry.pts, entry.size_bytes)
            if is_same and (entry.position is None or packet.pos in (None, entry.position)):
                self._pushed_back = packet
                self.ordinal = entry.ordinal
                return True
            if packet.dts is not None and entry.dts is not None and packet.dts > entry.dts:
                return False
        return False
