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

_WALKERS: dict[str, type[Walker]] = {
    "asf": AsfWalker,
    "avi": AviWalker,
    "flv": FlvWalker,
    "ivf": IvfWalker,
    "matroska": MatroskaWalker,
    "mpeg": MpegPsWalker,
    "ogg": OggWalker,
}
_STARTS = {
    "asf": b"0&\xb2u\x8ef\xcf\x11",
    "avi": b"RIFF",
    "flv": b"FLV",
    "ivf": b"DKIF",
}  # of files that are laid out as usual


def walker_for(
    container: str, descriptor: int, file_bytes: int, note: Note, *, pids: frozenset[int] | None = None
) -> Walker | None:
    """Return the walker of a container by the first word of its FFmpeg name, or None if it has none.

    The walker calls `note` with the position of each break, in bytes into the file, and the reason. `pids`
    are those of an MPEG transport stream whose counters are checked; None stands for all. The descriptor's
    offset is not moved.
    """
    if container == "mpegts":
        return MpegTsWalker(descriptor, file_bytes, note, pids)
    if container == "mov" and is_fragmented(descriptor, file_bytes):
        return FragmentsWalker(descriptor, file_bytes, note)
    start = os.pread(descriptor, 8, 0)
    if not start.startswith(_STARTS.get(container, b"")) or (container == "mpeg" and start[:4] == b"RIFF"):
        return None  # for example a Video CD's sectors: FFmpeg finds packets in almost anything
    walker = _WALKERS.get(container)
    return None if walker is None else walker(descriptor, file_bytes, note)
