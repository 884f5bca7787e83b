"""Choose the walker of a container."""

from __future__ import annotations

import os

from app.video.child.walkers.asf import AsfWalker
from app.video.child.walkers.avi import AviWalker
from app.video.child.walkers.flv import FlvWalker
from app.video.child.walkers.fragments import FragmentsWalker, is_fragmented
from app.video.child.walkers.ivf import IvfWalker
from app.video.child.walkers.matroska import MatroskaWalker
from app.video.child.walkers.mpegps import MpegPsWalker
from app.video.child.walkers.mpegts import MpegTsWalker
from app.video.child.walkers.ogg import OggWalker
from app.video.child.walkers.walker import Note, Walker

# By the first word of FFmpeg's name of the container: its walker, and how files begin that it can check.
_WALKERS: dict[str, tuple[type[Walker], bytes]] = {
    "asf": (AsfWalker, b"0&\xb2u\x8ef\xcf\x11"),
    "avi": (AviWalker, b"RIFF"),
    "flv": (FlvWalker, b"FLV"),
    "ivf": (IvfWalker, b"DKIF"),
    "matroska": (MatroskaWalker, b""),
    "mov": (FragmentsWalker, b""),
    "mpeg": (MpegPsWalker, b""),
    "mpegts": (MpegTsWalker, b""),
    "ogg": (OggWalker, b""),
}


def walker_for(container: str, descriptor: int, file_bytes: int, note: Note) -> Walker | None:
    """Return the walker for a file of `container`, the first word of FFmpeg's name; None if it has none.

    The walker calls `note` with the position of each break, in bytes into the file, and the reason. The
    descriptor's offset is not moved.
    """
    walker, start = _WALKERS.get(container, (None, b""))
    head = os.pread(descriptor, 8, 0)
    # FFmpeg finds packets in almost anything, such as a Video CD's sectors, which begin with RIFF.
    is_other = not head.startswith(start) or (container == "mpeg" and head[:4] == b"RIFF")
    if walker is None or is_other or (container == "mov" and not is_fragmented(descriptor, file_bytes)):
        return None
    return walker(descriptor, file_bytes, note)
