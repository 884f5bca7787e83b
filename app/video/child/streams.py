"""Which video stream is read, as the ffmpeg command chooses it, and what the others are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from app.video.child.ffmpeg_log import captured
from app.video.protocol.facts import OtherStream
from app.video.protocol.kinds import StreamKind

# ffmpeg's own choice may fall on a cover picture; ours never does.
_NO_REAL_VIDEO = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_HAS_PACKETS_SCORE = 100_000_000  # fftools/ffmpeg_mux_init.c, map_auto_video
_IS_DEFAULT_SCORE = 5_000_000
_PROBED_BYTES = 5_000_000  # of packets, as ffmpeg's default for what it reads before it chooses
_PROBED_PACKETS = 5000
_MAX_OTHERS = 32
_UNKNOWN = ("none", "unknown")
_KINDS = "Video|Audio|Subtitle|Data|Attachment|Unknown"
_DESCRIBED = re.compile(rf"Stream #0:(\d{{1,5}})(?:\[[^]\n]*\])?(?:\([^)\n]*\))?: (?:{_KINDS}): ([^\n]*)")
_NAME = re.compile(r"[A-Za-z0-9_]{1,32}")
_TAG = re.compile(r"\((?:(\w{4})|[^()]*?) / (0x[0-9A-F]{8})\)")
_SIZE = re.compile(r"[ ,](\d{1,5})x(\d{1,5})\b")


def real_video_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams that are no cover pictures or thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & _NO_REAL_VIDEO]


def choose_among(container: InputContainer, candidates: Sequence[VideoStream]) -> int:
    """Return the index of the stream that ffmpeg takes. Reads packets: open the container anew afterwards.

    The most pixels win, five million more for the default stream; any data near the beginning comes first.
    """
    descriptions = _descriptions(container)
    seen = _seen_near_the_beginning(container, candidates)

    def score(stream: VideoStream) -> int:
        width, height = _size(stream, descriptions.get(stream.index, ""))
        return (
            width * height
            + _HAS_PACKETS_SCORE * (stream.index in seen)
            + _IS_DEFAULT_SCORE * bool(stream.disposition & Disposition.default)
        )

    return max(candidates, key=score).index  # the first of equals


def _seen_near_the_beginning(container: InputContainer, candidates: Sequence[VideoStream]) -> set[int]:
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
    return seen


def other_streams(container: InputContainer, chosen: int) -> tuple[OtherStream, ...]:
    """Return what is known of the streams that are not read, 32 at most."""
    descriptions = _descriptions(container)
    others = [stream for stream in container.streams if stream.index != chosen]
    return tuple(_other(stream, descriptions.get(stream.index, "")) for stream in others[:_MAX_OTHERS])


def _other(stream: Stream, description: str) -> OtherStream:
    width, height = _size(stream, description)
    return OtherStream(
        index=stream.index,
        kind=_kind(stream.type),
        codec=_name_in(description) or "",
        width=width,
        height=height,
        language=stream.language or "",
        is_default=bool(stream.disposition & Disposition.default),
        is_picture=bool(stream.disposition & _NO_REAL_VIDEO),
    )


def _kind(name: str) -> StreamKind:
    return StreamKind(name) if name in [*StreamKind] else StreamKind.UNKNOWN


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
    """(width, height) of a video stream, as its container tells; (0, 0) if it does not, and of all others."""
    if not isinstance(stream, VideoStream):
        return 0, 0
    context = stream.codec_context
    if context is not None:
        return context.width, context.height
    found = _SIZE.search(description)  # PyAV does not open what has no decoder; FFmpeg's description tells
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _descriptions(container: InputContainer) -> dict[int, str]:
    """What FFmpeg prints of each stream, by index: "h264 (High) (avc1 / 0x31637661), yuv420p, 640x360"."""
    try:
        with captured(av.logging.INFO):
            text = container.dumps_format()  # type: ignore[attr-defined] # PyAV's stub lacks it
    except UnicodeDecodeError:
        return {}
    found: dict[int, str] = {}
    for index, description in _DESCRIBED.findall(text):
        found.setdefault(int(index), description)
    return found
