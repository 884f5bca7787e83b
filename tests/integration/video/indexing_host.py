"""Indexes the videos that it is given and decodes a segment of each, whatever comes of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from app.errors import FrameboxError
from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits


def main() -> None:
    with DecoderPool(limits=VideoLimits(), memory_bytes=1 << 29, ring_bytes=1 << 22) as pool:
        for name in sys.argv[1:]:
            with (
                contextlib.suppress(FrameboxError),
                pool.index(Path(name), segment_frames=10, cancelled=lambda: False) as index,
            ):
                (first, *_) = index
                with pool.decode(
                    Path(name), first, frame_size=(64, 36), batch_size=4, cancelled=lambda: False
                ) as session:
                    for batch in session:
                        batch.release()


if __name__ == "__main__":
    main()
