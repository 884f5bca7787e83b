"""Files made to hurt: playlists, bombs, wild numbers. Each is made here, and small for what it asks for."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from clips import ClipFolder, ffmpeg


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, *numbers: int) -> bytes:
    return box(kind, bytes(4), b"".join(struct.pack(">I", number) for number in numbers))


def movie(*tracks: bytes) -> bytes:
    header = full(b"mvhd", 0, 0, 1000, 10_000, 0x10000, 0x1000000, *[0] * 18)
    return box(b"ftyp", b"isom", bytes(4), b"isom") + box(b"moov", header, *tracks)


def video_track(samples: int) -> bytes:
    entry = box(b"mp4v", bytes(6), b"\0\1", bytes(16), b"\0\x10\0\x10", bytes(50))
    tables = [
        box(b"stsd", bytes(4), b"\0\0\0\1", entry),
        full(b"stts", 1, samples, 1),
        full(b"stsc", 1, 1, samples, 1),
        full(b"stsz", 1, samples),
        full(b"stco", 1, 0),
    ]
    media = box(
        b"mdia",
        full(b"mdhd", 0, 0, 1000, 10_000, 0),
        box(b"hdlr", bytes(8), b"vide", bytes(13)),
        box(b"minf", full(b"vmhd", 0, 0), box(b"stbl", *tables)),
    )
    return box(b"trak", full(b"tkhd", 0, 0, 1, 0, 10_000, *[0] * 15), media)


def compressed_movie(whole: bytes) -> bytes:
    """The same MP4 with its header compressed, where a reader of boxes does not see it."""
    start = whole.index(b"moov") - 4
    packed = box(b"cmvd", struct.pack(">I", len(whole) - start), zlib.compress(whole[start:]))
    return whole[:start] + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), packed))


def element(name: int, *parts: bytes) -> bytes:
    """One element of Matroska, its length in eight bytes."""
    body = b"".join(parts)
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + struct.pack(">Q", len(body) | 1 << 56) + body


def matroska(*parts: bytes) -> bytes:
    head = element(0x1A45DFA3, element(0x4282, b"matroska"), element(0x4287, b"\4"), element(0x4285, b"\2"))
    return head + element(0x18538067, element(0x1549A966, element(0x2AD7B1, b"\x0f\x42\x40")), *parts)


def matroska_track(number: int) -> bytes:
    picture = element(0xE0, element(0xB0, b"\x40"), element(0xBA, b"\x40"))
    numbers = element(0xD7, struct.pack(">H", number)), element(0x73C5, struct.pack(">H", number))
    return element(0xAE, *numbers, element(0x83, b"\1"), element(0x86, b"V_VP8"), picture)


def matroska_tag(number: int) -> bytes:
    name = b"TAG%d" % number
    return element(0x67C8, element(0x45A3, name), element(0x4487, name))


def matroska_with_tags(clips: ClipFolder, count: int) -> bytes:
    """A video with tags before its first cluster, and nothing that tells where they are."""
    data = clips.get("vp8.webm").read_bytes()
    at = data.index(b"\x1f\x43\xb6\x75")
    tags = element(0x1254C367, element(0x7373, element(0x63C0), *map(matroska_tag, range(count))))
    return data[:at] + tags + data[at:]


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n"
SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    b"m=video 45678 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
DASH = (
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">'
    b"<Period><BaseURL>%s</BaseURL></Period></MPD>"
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

Maker = Callable[[ClipFolder, Path], None]


def _bytes(data: bytes) -> Maker:
    return lambda _clips, target: _write(target, data)


def _write(target: Path, data: bytes) -> None:
    target.write_bytes(data)


def _playlist(text: bytes) -> Maker:
    return lambda clips, target: _write(target, text % str(clips.get("h264.ts")).encode())


def _made(*arguments: str, suffix: str) -> Maker:
    def make(_clips: ClipFolder, target: Path) -> None:
        made = target.with_name(f"made.{suffix}")
        ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=0.2", *arguments, made)
        made.rename(target)

    return make


def _audio(codec: str, suffix: str) -> Maker:
    def make(_clips: ClipFolder, target: Path) -> None:
        made = target.with_name(f"made.{suffix}")
        ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", codec, made)
        made.rename(target)

    return make


def _cover(_clips: ClipFolder, target: Path) -> None:
    made, picture = target.with_name("cover.m4a"), target.with_name("cover.png")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x64", "-frames:v", "1", picture)
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-i", picture, "-map", "0", "-map", "1", "-c:a", "aac",
           "-c:v", "png", "-disposition:v", "attached_pic", made)  # fmt: skip
    made.rename(target)


def _unknown_codec(clips: ClipFolder, target: Path) -> None:
    target.write_bytes(clips.get("h264.mp4").read_bytes().replace(b"avc1", b"zq9x"))


def _encrypted(_clips: ClipFolder, target: Path) -> None:
    made = target.with_name("encrypted.mp4")
    key = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb")
    key_id = ("-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")
    source = ("-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=1")
    ffmpeg(*source, "-c:v", "libx264", "-encryption_scheme", "cenc-aes-ctr", *key, *key_id, made)
    made.rename(target)


def _tagged(clips: ClipFolder, target: Path) -> None:
    _write(target, matroska_with_tags(clips, 2000))


def _stamped(expression: str) -> Maker:
    """A video whose packets have the time stamps of `expression`, of N, the packet's number, and PTS."""

    def make(clips: ClipFolder, target: Path) -> None:
        made = target.with_name(f"made{target.suffix}")
        ffmpeg("-i", clips.get("h264_one_gop.mp4"), "-c", "copy", "-bsf:v", f"setts=ts={expression}", made)
        made.rename(target)

    return make


def _many_references(_clips: ClipFolder, target: Path) -> None:
    """Flat pictures of 8K: a few kilobytes, of which a decoder has to keep sixteen."""
    made = target.with_name("made.mp4")
    encode = ("-c:v", "libx264", "-preset", "ultrafast", "-x264-params", "ref=16:bframes=0:keyint=100")
    ffmpeg("-f", "lavfi", "-i", "color=size=7680x4320:rate=25", "-frames:v", "20", *encode, made)
    made.rename(target)


# name: (maker, the error's code or None where the video is read)
HOSTILE: dict[str, tuple[Maker, str | None]] = {
    "empty.mp4": (_bytes(b""), "unsupported_video"),
    "zeros.mp4": (_bytes(bytes(100_000)), "unsupported_video"),
    "text.mp4": (_bytes(b"not a video\n" * 1000), "unsupported_video"),
    "page.mp4": (_bytes(b"<html><body>404</body></html>" * 50), "unsupported_video"),
    "hls.mp4": (_playlist(HLS), "unsupported_video"),
    "hls.m3u8": (_playlist(HLS), "unsupported_video"),
    "hls_http.m3u8": (_bytes(HLS % b"http://127.0.0.1:9/x.ts"), "unsupported_video"),
    "concat.mp4": (_playlist(b"ffconcat version 1.0\nfile '%s'\n"), "unsupported_video"),
    "concat.ffconcat": (_playlist(b"ffconcat version 1.0\nfile '%s'\n"), "unsupported_video"),
    "session.mp4": (_bytes(SDP), "unsupported_video"),
    "session.sdp": (_bytes(SDP), "unsupported_video"),
    "dash.mpd": (_playlist(DASH), "unsupported_video"),
    "picture.svg": (_bytes(SVG), "unsupported_video"),
    "frame%03d.jpg": (_made("-frames:v", "1", suffix="jpg"), "unsupported_video"),
    "picture.png": (_made("-frames:v", "1", suffix="png"), "unsupported_video"),
    "picture.gif": (_made("-frames:v", "1", suffix="gif"), "unsupported_video"),
    "picture.webp": (_made("-frames:v", "1", suffix="webp"), "unsupported_video"),
    "picture.avif": (
        _made("-frames:v", "1", "-c:v", "libaom-av1", "-still-picture", "1", suffix="avif"),
        "unsupported_video",
    ),
    "sound.m4a": (_audio("aac", "m4a"), "no_video_stream"),
    "sound.mkv": (_audio("libopus", "mkv"), "no_video_stream"),
    "sound.ts": (_audio("mp2", "ts"), "no_video_stream"),
    "cover.m4a": (_cover, "no_video_stream"),
    "encrypted.mp4": (_encrypted, "encrypted"),
    "index_bomb.mp4": (_bytes(movie(video_track(85_000_000))), "over_limit"),
    "index_bomb_20_tracks.mp4": (_bytes(movie(*[video_track(2_000_000)] * 20)), "over_limit"),
    "many_tracks.mp4": (_bytes(movie(*[video_track(1)] * 900)), "over_limit"),
    "huge.mp4": (
        _made("-vf", "scale=9000:9000", "-frames:v", "1", "-c:v", "mjpeg", suffix="mp4"),
        "over_limit",
    ),
    "wide.mkv": (
        _made("-vf", "scale=16640:64", "-frames:v", "1", "-c:v", "mjpeg", suffix="mkv"),
        "over_limit",
    ),
    "compressed_index_bomb.mov": (
        _bytes(compressed_movie(movie(video_track(85_000_000)))),
        "nothing_decodable",
    ),
    "many_tracks.mkv": (
        _bytes(matroska(element(0x1654AE6B, *map(matroska_track, range(1, 5000))))),
        "over_limit",
    ),
    "many_tags.webm": (_tagged, None),
    "many_references.mp4": (_many_references, None),
    "far_time_stamps.mkv": (_stamped("PTS*1e12"), None),
    "wild_time_stamps.mp4": (_stamped(r"PTS+4e8*mod(N\,7)"), None),
    "equal_time_stamps.mkv": (_stamped("0"), None),
    "backward_time_stamps.ts": (_stamped("1e9-PTS*7"), None),
    "unknown_codec.mov": (_unknown_codec, "unsupported_codec"),
}
