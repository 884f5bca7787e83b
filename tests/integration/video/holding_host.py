"""A host in the middle of a segment: prints its decoder child's pid, then waits to be killed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from reading import child_of

from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits


def never() -> bool:
    return False


def main() -> None:
    video = Path(sys.argv[1])
    with DecoderPool(
        limits=VideoLimits(), memory_bytes=1 << 29, ring_bytes=1 << 22, ready_children=2
    ) as pool:
        with pool.index(video, segment_frames=1000, cancelled=never) as index:
            (segment,) = index
        with pool.decode(video, segment, frame_size=(128, 72), batch_size=1, cancelled=never) as session:
            next(iter(session))
            sys.stdout.write(f"{child_of(session).pid}\n")
            sys.stdout.flush()
            threading.Event().wait(600)


if __name__ == "__main__":
    main()
