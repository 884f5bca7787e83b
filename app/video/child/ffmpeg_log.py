"""Capture FFmpeg's log, for facts that are available in no other way."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import av

_LOG = logging.getLogger("libav")
_LINES_KEPT = 64  # of the log, between two reads

LogLine = tuple[int, str, str]  # level, name of the logger, text


@contextmanager
def captured(level: int) -> Iterator[list[LogLine]]:
    """Yield the list of lines that FFmpeg logs at `level` or worse while the block runs, without bound."""
    before = av.logging.get_level()
    av.logging.set_level(level)
    try:
        with av.logging.Capture() as lines:
            yield lines
    finally:
        av.logging.set_level(before)


class LogTail:
    """Keep the last warnings and errors that FFmpeg logs from now on. One per process."""

    def __init__(self) -> None:
        self._lines: deque[tuple[str, str]] = deque(maxlen=_LINES_KEPT)
        handler = logging.Handler()
        handler.emit = lambda record: self._lines.append((record.name, record.getMessage()))  # type: ignore[method-assign]
        logging.raiseExceptions = False
        _LOG.handlers = [handler]
        _LOG.propagate = False
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.WARNING)

    def take(self, source: str) -> list[str]:
        """Return the new lines of `source`, FFmpeg's name of a demuxer or codec, and forget all lines."""
        lines = [text for name, text in self._lines if name == f"libav.{source}"]
        self._lines.clear()
        return lines
