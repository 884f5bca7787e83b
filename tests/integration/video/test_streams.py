"""Of several video streams the one is read that ffmpeg maps by default, and the others are named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from clips import ffmpeg
from reading import read_video

from app.errors import UnsupportedCodec
from app.video.child.codecs import DECODERS
from app.video.decoder import DecoderPool
from app.video.protocol.facts import OtherStream, StreamKind

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")


def source(size: str, *, rate: int = 5, seconds: int = 1) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}")


def ffmpegs_choice(video: Path) -> int:
    command = ["ffmpeg", "-nostdin", "-i", str(video), "-an", "-sn", "-dn", "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, check=True, timeout=120).stderr.decode()
    found = re.search(r"Stream #0:(\d+) -> #0:0", log)
    assert found is not None
    return int(found[1])


def two_streams(target: Path, first: str, second: str, *options: str) -> None:
    ffmpeg(*source(first), *source(second), "-map", "0", "-map", "1", *H264, *options, target)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    ("first", "second", "options", "expected"),
    [
        ("160x120", "64x48", (), 0),
        ("64x48", "160x120", (), 1),
        ("64x48", "64x48", (), 0),
        ("64x48", "160x120", ("-disposition:v:0", "default", "-disposition:v:1", "0"), 0),
        ("64x48", "2880x2160", ("-disposition:v:0", "default", "-disposition:v:1", "0"), 1),
    ],
)
def test_the_choice_is_ffmpegs(
    first: str,
    second: str,
    options: tuple[str, ...],
    expected: int,
    suffix: str,
    pool: DecoderPool,
    tmp_path: Path,
) -> None:
    if suffix == "ts" and options:
        expected = 1  # a transport stream has no default
    if suffix == "mp4" and not options:
        expected = 0  # its muxer makes the first the default
    target = tmp_path / f"two.{suffix}"
    two_streams(target, first, second, *options, *(() if options else ("-disposition:v", "0")))
    read = read_video(pool, target, frame_size=(64, 48))
    assert (read.facts.stream_index, ffmpegs_choice(target)) == (expected, expected)
    assert len(read.frames) == 5


def test_a_stream_without_data_near_the_beginning_is_not_chosen(pool: DecoderPool, tmp_path: Path) -> None:
    """The larger one begins after six megabytes of the other."""
    target = tmp_path / "late.ts"
    noise = "nullsrc=size=640x480:rate=25:duration=4,geq=random(1)*255:128:128"
    early = ("-f", "lavfi", "-i", noise, "-itsoffset", "60", *source("1280x720"))
    ffmpeg(*early, "-map", "0", "-map", "1", *H264, "-crf:v:0", "1", target)
    read = read_video(pool, target, frame_size=(64, 48))
    assert read.facts.stream_index == ffmpegs_choice(target)
    assert read.facts.width == 640


def test_the_streams_beside_it_are_named(pool: DecoderPool, tmp_path: Path) -> None:
    target = tmp_path / "many.mkv"
    inputs = (*source("64x48"), *source("160x120"), "-f", "lavfi", "-i", "sine=duration=1")
    maps = (
        "-map",
        "0",
        "-map",
        "1",
        "-map",
        "2",
        "-map",
        "2",
        *H264,
        "-c:v:0",
        "mpeg4",
        "-c:a:1",
        "pcm_s16le",
    )
    language = ("-metadata:s:a:0", "language=fin", "-disposition:v:0", "0", "-disposition:a:0", "default")
    ffmpeg(*inputs, *maps, "-c:a:0", "aac", *language, "-disposition:a:1", "0", target)
    facts = read_video(pool, target).facts
    assert facts.stream_index == 1
    assert facts.other_streams == (
        OtherStream(0, StreamKind.VIDEO, "mpeg4", 64, 48),
        OtherStream(2, StreamKind.AUDIO, "aac", language="fin", is_default=True),
        OtherStream(3, StreamKind.AUDIO, "pcm_s16le"),
    )


def test_a_cover_picture_is_never_the_video(pool: DecoderPool, tmp_path: Path) -> None:
    cover, video, target = (tmp_path / name for name in ("cover.png", "video.mp4", "both.mp4"))
    ffmpeg(*source("1280x720"), "-frames:v", "1", cover)
    ffmpeg(*source("64x48"), *H264, video)
    copies = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", cover, "-i", video, *copies, target)
    facts = read_video(pool, target).facts
    assert (facts.width, facts.codec) == (64, "h264")
    (other,) = facts.other_streams
    assert (other.codec, other.width, other.is_picture) == ("png", 1280, True)


@pytest.mark.parametrize(
    ("tag", "name"), [(b"zq9x", "zq9x"), (b"evc1", "evc"), (b"z\xa9 x", "0x7820A97A"), (b"avs3", "avs3")]
)
def test_a_codec_that_is_not_taken_is_named(tag: bytes, name: str, pool: DecoderPool, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    ffmpeg(*source("64x48"), *H264, video)
    video.write_bytes(video.read_bytes().replace(b"avc1", tag).replace(b"avcC", b"free"))
    with pytest.raises(UnsupportedCodec, match=name) as refused:
        read_video(pool, video)
    assert refused.value.extensions == {"codec": name, "allowed": sorted(DECODERS)}
