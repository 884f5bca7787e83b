"""What the documents say of containers and codecs is what the code takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from av.codec import Capabilities, Codec
from av.format import ContainerFormat

from app.errors import UnsupportedCodec, UnsupportedVideo
from app.video.child.codecs import DECODERS, DEMUXERS, EXCLUDED
from app.video.faults import error_of
from app.video.protocol.messages import Fault, FaultCode

FRAMES = (Path(__file__).resolve().parents[2] / "docs" / "frames.md").read_text()
USED = (
    "h264 hevc vvc vp8 vp9 libdav1d mpeg2video mpeg4 prores png qtrle rv10 rv20 svq1 indeo4 cfhd hap jpeg2000"
)


def _listed(heading: str) -> set[str]:
    """The names of the paragraph of code words under a heading."""
    section = FRAMES.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (names,) = (part for part in section.split("\n\n") if re.fullmatch(r"(`[^`]+`\s*)+", part))
    return set(re.findall(r"`([^`]+)`", names))


def test_the_document_lists_the_containers_that_are_taken() -> None:
    assert _listed("Containers") == set(DEMUXERS)
    assert len(DEMUXERS) == len(set(DEMUXERS))


def test_the_document_lists_the_codecs_that_are_taken_and_why_others_are_not() -> None:
    assert _listed("Codecs") == DECODERS
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", FRAMES.partition("\n## Codecs\n")[2], re.MULTILINE))
    assert rows == EXCLUDED


@pytest.mark.parametrize("name", DEMUXERS)
def test_every_container_is_one_that_ffmpeg_reads(name: str) -> None:
    assert ContainerFormat(name, "r").is_input


def test_decoders_are_of_video_and_in_software() -> None:
    assert set(USED.split()) <= DECODERS
    for name in DECODERS:
        codec = Codec(name, "r")
        assert codec.type == "video"
        assert not codec.capabilities & (Capabilities.hardware | Capabilities.hybrid)
        assert not name.endswith(("_cuvid", "_qsv", "_v4l2m2m", "_vaapi", "_mediacodec", "_amf", "_vulkan"))


def test_no_excluded_decoder_is_taken() -> None:
    assert not DECODERS & EXCLUDED.keys()
    assert {Codec(name, "r").name for name in EXCLUDED} == EXCLUDED.keys()


def test_a_codec_is_refused_by_name_and_a_container_with_those_that_are_taken() -> None:
    fault = Fault(FaultCode.UNSUPPORTED_CODEC, codec="avs3", supported_codecs=tuple(sorted(DECODERS)))
    error = error_of(Fault.unpack(fault.pack()), memory_bytes=1)
    assert isinstance(error, UnsupportedCodec)
    assert (error.status, error.code) == (422, "unsupported_codec")
    assert error.extensions["codec"] == "avs3"
    assert error.extensions["allowed"] == sorted(DECODERS)
    other = error_of(Fault(FaultCode.UNSUPPORTED), memory_bytes=1)
    assert isinstance(other, UnsupportedVideo)
    assert (other.status, other.code) == (415, "unsupported_video")
