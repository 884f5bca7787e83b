"""Limits for videos. Beyond them, the caller gets VideoOverLimit with the limit's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a decoder child accepts. The fields are named as the settings that carry them."""

    max_pixels: int = 8192 * 4320  # width × height of a frame
    max_side: int = 16384  # width or height of a frame
    max_frames: int = 20_000_000  # frames a video; in MP4, samples over all tracks
    max_streams: int = 32  # streams a container
    max_decoded_pixels: int = 2**47  # width × height × frames: a day of 1080p at 60 fps is 1.1e13
    max_tags: int = 5000  # of an MP4 or Matroska: FFmpeg compares each with all before it
    max_opening_seconds: int = 5  # of processor time, for FFmpeg to open a container of whatever kind
    large_samples: int = 300_000  # of an MP4, over all tracks: larger ones are indexed one at a time
    max_header_bytes: int = 512 * 1024 * 1024  # of one MP4 header box that FFmpeg reads into memory
