"""Choose the video stream that is read, as the ffmpeg command does, and describe the others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from app.video.child.ffmpeg_log import captured
from app.video.protocol.facts import OtherStream, StreamKind

# ffmpeg's own choice may fall on a cover picture; ours never does.
_NO_REAL_VIDEO = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_HAS_PACKETS_SCORE = 100_000_000  # fftools/ffmpeg_mux_init.c, map_auto_video
_IS_DEFAULT_SCORE = 5_000_000
_PROBED_BYTES = 5_000_000  # of packets: how much ffmpeg reads by default before it chooses
_PROBED_PACKETS = 5000
_MAX_OTHERS = 32
_UNKNOWN = ("none", "unknown")
_KINDS = "Video|Audio|Subtitle|Data|Attachment|Unknown"
_DESCRIBED = re.compile(rf"Stream #0:(\d{{1,5}})(?:\[[^]\n]*\])?(?:\([^)\n]*\))?: (?:{_KINDS}): ([^\n]*)")
_NAME = re.compile(r"[A-Za-z0-9_]{1,32}")
_TAG = re.compile(r"\((?:(\w{4})|[^()]*?) / (0x[0-9A-F]{8})\)")
_SIZE = re.compile(r"[ ,](\d{1,5})x(\d{1,5})\b")


def real_video_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams other than cover pictures and thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & _NO_REAL_VIDEO]


def choose_among(container: InputContainer, candidates: Sequence[VideoStream]) -> VideoStream:
    """Return the stream that ffmpeg chooses.

    The most pixels win, plus five million for the default stream; but streams with packets near the beginning
    come first. This reads packets: open the container again afterwards.
    """
    descriptions = _descriptions(container)
    missing = {stream.index for stream in candidates}
    seen: set[int] = set()
    read_bytes = 0
    with contextlib.suppress(av.FFmpegError, OSError):
        for number, packet in enumerate(container.demux()):
            read_bytes += packet.size
            if packet.size:
                seen.add(packet.stream_index)
            if missing <= seen or read_bytes > _PROBED_BYTES or number > _PROBED_PACKETS:
                break

    def score(stream: VideoStream) -> int:
        width, height = _size(stream, descriptions.get(stream.index, ""))
        return (
            width * height
            + _HAS_PACKETS_SCORE * (stream.index in seen)
            + _IS_DEFAULT_SCORE * bool(stream.disposition & Disposition.default)
        )

    return max(candidates, key=score)  # the first of equals


def other_streams(container: InputContainer, chosen: int) -> tuple[OtherStream, ...]:
    """Return what is known about the streams that are not read, at most 32."""
    descriptions = _descriptions(container)
    others = []
    for stream in [stream for stream in container.streams if stream.index != chosen][:_MAX_OTHERS]:
        description = descriptions.get(stream.index, "")
        width, height = _size(stream, description)
        other = OtherStream(
            index=stream.index,
            kind=StreamKind(stream.type) if stream.type in [*StreamKind] else StreamKind.UNKNOWN,
            codec=_name_in(description) or "",
            width=width,
            height=height,
            language=stream.language or "",
            is_default=bool(stream.disposition & Disposition.default),
            is_picture=bool(stream.disposition & _NO_REAL_VIDEO),
        )
        others.append(other)
    return tuple(others)


def codec_name(container: InputContainer, stream: Stream) -> str:
    """Return FFmpeg's name of a stream's codec, or the container's tag of one that FFmpeg does not know."""
    return _name_in(_descriptions(container).get(stream.index, "")) or "unknown"


def _name_in(description: str) -> str | None:
    name = _NAME.match(description)
    if name and name[0] not in _UNKNOWN:
        return name[0]
    tag = _TAG.search(description)
    return (tag[1] or tag[2]) if tag else None


def _size(stream: Stream, description: str) -> tuple[int, int]:
    """Return (width, height) of a video stream as its container declares; (0, 0) if unknown or not video."""
    if not isinstance(stream, VideoStream):
        return 0, 0
    context = stream.codec_context
    if context is not None:
        return context.width, context.height
    found = _SIZE.search(description)  # PyAV opens only streams with a decoder; FFmpeg describes all
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _descriptions(container: InputContainer) -> dict[int, str]:
    """Return FFmpeg's text on each stream, by index: "h264 (High) (avc1 / 0x31637661), yuv420p, 640x360"."""
    try:
        with captured(av.logging.INFO):
            text = container.dumps_format()  # type: ignore[attr-defined] # PyAV's stub lacks it
    except UnicodeDecodeError:
        return {}
    found: dict[int, str] = {}
    for index, description in _DESCRIBED.findall(text):
        found.setdefault(int(index), description)
    return found
