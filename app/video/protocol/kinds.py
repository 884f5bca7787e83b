"""Names from the index that a job's report contains. Imports nothing: web workers use it, too."""

from __future__ import annotations

from enum import StrEnum


class StreamKind(StrEnum):
    """What a stream of a container holds. Decoder processes send the position in this list."""

    VIDEO = "video"
    AUDIO = "audio"
    SUBTITLE = "subtitle"
    DATA = "data"
    ATTACHMENT = "attachment"
    UNKNOWN = "unknown"


class Proof(StrEnum):
    """What proves that no frame is missing from an index."""

    TABLE = "table"  # the container lists its samples
    CLOCK = "clock"  # time stamps are those of a regular clock without a gap
    NONE = "none"
