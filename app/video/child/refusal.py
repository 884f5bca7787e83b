"""Why a video cannot be used. Raised wherever the child finds out, and sent to the host."""

from __future__ import annotations

from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import Fault, FaultCode


class VideoRefused(Exception):
    """The video cannot be used. `fault` is the reason, for the host."""

    def __init__(self, fault: Fault | FaultCode) -> None:
        self.fault = Fault(fault) if isinstance(fault, FaultCode) else fault
        super().__init__(self.fault)


def check_limit(name: str, limit: int, value: int) -> None:
    """Raise VideoRefused if `value` exceeds the limit."""
    if value > limit:
        raise VideoRefused(Fault(FaultCode.OVER_LIMIT, name, limit, value))


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raise VideoRefused if a picture of this size exceeds a limit."""
    check_limit("max_pixels", limits.max_pixels, width * height)
    check_limit("max_side", limits.max_side, max(width, height))
