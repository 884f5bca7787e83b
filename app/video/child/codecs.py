"""Which containers and codecs are accepted: all that the bundled FFmpeg decodes in software.

`docs/frames.md` lists both, and gives the reason for each one that is missing.
"""

from __future__ import annotations

from typing import Final

import av
from av.codec import Capabilities, Codec
from av.codec.codec import UnknownCodecError

# What FFmpeg may take the bytes for, by its names of demuxers. None opens other files or servers, and none
# reads still images. GIF and APNG are animations here: a single picture is refused before FFmpeg sees it.
DEMUXERS: Final = tuple(
    name
    for line in (
        # of cameras, phones, editors, the web and television
        "mov mp4 m4a 3gp 3g2 mj2 matroska webm avi mpegts mpeg mpegvideo flv live_flv asf ogg mxf gxf dv wtv",
        "nut rm ivr ivf nsv nuv pva ty m4v h261 h263 h264 hevc vvc av1 obu vc1 vc1test cavsvideo dirac apv",
        "mjpeg mjpeg_2000 yuv4mpegpipe gif apng",
        "dhav hxvs ifv luodat mxg smjpeg",  # of video recorders and IP cameras
        "cine ser",  # of scientific and film cameras
        "bink flic roq smk swf kux vivo",  # of games and discs
    )
    for name in line.split()
)

# Decoders of the bundled FFmpeg that are not accepted, and why.
EXCLUDED: Final[dict[str, str]] = {
    "wrapped_avframe": "takes the addresses of pictures out of packets",
    "vnull": "gives no pictures",
    "av1": "decodes on devices only; libdav1d is used",
    "libvpx": "FFmpeg's own decoder of VP8 is used",
    "libvpx-vp9": "FFmpeg's own decoder of VP9 is used",
    "ansi": "text, not video",
    "bintext": "text, not video",
    "idf": "text, not video",
    "xbin": "text, not video",
}
_ON_DEVICES = Capabilities.hardware | Capabilities.hybrid


def _is_software_video_decoder(name: str) -> bool:
    try:
        codec = Codec(name, "r")
    except UnknownCodecError:
        return False  # it only encodes
    return codec.type == "video" and codec.name == name and not codec.capabilities & _ON_DEVICES


# By FFmpeg's names. Computed before a child is locked down: it is forked from a process that has the list.
DECODERS: Final = frozenset(
    name for name in av.codecs_available if name not in EXCLUDED and _is_software_video_decoder(name)
)
