"""Turn a child's reason to refuse a video into the error for the caller."""

from __future__ import annotations

from app.errors import (
    EncryptedVideo,
    FrameboxError,
    NothingDecodable,
    NoVideoStream,
    UnsupportedCodec,
    UnsupportedVideo,
    VideoOverLimit,
)
from app.video.protocol.messages import Fault, FaultCode

# The list of containers in the error that refuses others.
_CONTAINERS = (
    "MP4, MOV, Matroska, WebM, MPEG-TS, MPEG-PS, AVI, FLV, ASF/WMV, Ogg, MXF, raw H.264, HEVC or AV1, "
    "animated GIF and PNG, and others that docs/frames.md lists"
)


def error_of(fault: Fault, *, memory_bytes: int) -> FrameboxError:
    """Return the error for the caller. `memory_bytes` is the limit of the child's address space."""
    match fault.code:
        case FaultCode.UNSUPPORTED_CODEC:
            return UnsupportedCodec(
                f"The codec of the video, {fault.codec}, is not supported.",
                {"codec": fault.codec, "allowed": list(fault.supported_codecs)},
            )
        case FaultCode.OVER_LIMIT:
            return over_limit(fault.limit, fault.limit_value, fault.value)
        case FaultCode.OUT_OF_MEMORY:
            return VideoOverLimit(
                f"The video needs more memory to decode than a decoder may take, {memory_bytes} bytes.",
                {"limit": "decoder_memory_bytes", "limit_value": memory_bytes},
            )
        case FaultCode.NO_VIDEO_STREAM:
            return NoVideoStream("The file holds no video stream.")
        case FaultCode.ENCRYPTED:
            return EncryptedVideo("The video is encrypted.")
        case FaultCode.NOTHING_DECODABLE:
            return NothingDecodable("No frame of the video could be decoded.")
        case _:
            return UnsupportedVideo(
                "The bytes are no video that this service reads.", {"allowed": _CONTAINERS}
            )


def over_limit(name: str, limit: int, value: int) -> VideoOverLimit:
    """Return the error for a value over a limit. `name` is the limit's setting."""
    return VideoOverLimit(
        f"The video's {name.removeprefix('max_').replace('_', ' ')}, {value}, is over the limit of {limit}.",
        {"limit": name, "limit_value": limit, "value": value},
    )
