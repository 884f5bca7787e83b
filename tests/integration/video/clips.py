"""Small videos with known content, made by the ffmpeg command when a test asks for them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import field_pictures
import mpeg2_fields
from field_pictures import CodedField

SOURCE = ["-f", "lavfi", "-i", "testsrc2=size=128x72:rate=25:duration=2"]  # 50 frames, all different
H264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "12", "-bf", "3", "-pix_fmt", "yuv420p"]
X265 = ["-c:v", "libx265", "-preset", "veryfast", "-x265-params"]
HEVC = [*X265, "log-level=none:keyint=12:min-keyint=12:bframes=4:open-gop=1", "-pix_fmt", "yuv420p"]
HEVC_10 = [*X265, "log-level=none:keyint=12:min-keyint=12:bframes=3:no-open-gop=1", "-pix_fmt", "yuv420p10le"]
OPEN_GOP = ["-x264-params", "open-gop=1:b-pyramid=normal"]
MPEG2 = ["-c:v", "mpeg2video", "-g", "12", "-bf", "2"]
INTERLACED = ["-flags", "+ildct+ilme", "-top", "1"]
ALT_REF = ["-auto-alt-ref", "1", "-lag-in-frames", "12", "-b:v", "200k", "-g", "12"]
VFR = ["-vf", "select='not(mod(n,3))+lt(n,20)'", "-fps_mode", "vfr"]

Recipe = list[str] | Callable[["ClipFolder", Path], None]


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=120)


def _remux(source: str, *arguments: str, before: tuple[str, ...] = ()) -> Recipe:
    def make(folder: ClipFolder, target: Path) -> None:
        ffmpeg(*before, "-i", folder.get(source), "-c", "copy", *arguments, target)

    return make


def _joined(*names: str) -> Recipe:
    def make(folder: ClipFolder, target: Path) -> None:
        target.write_bytes(b"".join(folder.get(name).read_bytes() for name in names))

    return make


def _tail(name: str, skipped_bytes: int) -> Recipe:
    def make(folder: ClipFolder, target: Path) -> None:
        target.write_bytes(folder.get(name).read_bytes()[skipped_bytes:])

    return make


TICKS_A_FRAME = 3600  # of 90 kHz


H264_FIELDS = field_pictures.coded_fields(50)
H264_B_FIELDS = field_pictures.coded_b_fields(50)
MPEG2_B_FIELDS = mpeg2_fields.coded_b_fields(50, group=12)
MPEG2_FIELDS = mpeg2_fields.coded_fields(50, group=12, is_intra_only=False)
MPEG2_INTRA_FIELDS = mpeg2_fields.coded_fields(50, group=12, is_intra_only=True)


def _fields(fields: list[bytes], raw_name: str, *, packets_a_frame: int, keyframes: range) -> Recipe:
    """Field pictures, each in a packet with a time stamp of its own, or both of a frame in one."""

    def make(folder: ClipFolder, target: Path) -> None:
        size = 2 // packets_a_frame
        step = TICKS_A_FRAME // packets_a_frame
        with av.open(str(folder.get(raw_name))) as raw, av.open(str(target), "w") as muxer:
            stream = muxer.add_stream_from_template(raw.streams.video[0])
            for number in range(len(fields) // size):
                packet = av.Packet(b"".join(fields[number * size : (number + 1) * size]))
                packet.stream, packet.time_base = stream, Fraction(1, 90_000)
                packet.pts = packet.dts = number * step
                packet.is_keyframe = number * size in keyframes
                muxer.mux(packet)

    return make


def _b_fields(fields: list[CodedField], raw_name: str) -> Recipe:
    """Field pictures in the order of coding, each in a packet with a time stamp of its own."""
    field_ticks = TICKS_A_FRAME // 2

    def make(folder: ClipFolder, target: Path) -> None:
        with av.open(str(folder.get(raw_name))) as raw, av.open(str(target), "w") as muxer:
            stream = muxer.add_stream_from_template(raw.streams.video[0])
            for number, field in enumerate(fields):
                packet = av.Packet(field.data)
                packet.stream, packet.time_base = stream, Fraction(1, 90_000)
                packet.dts = number * field_ticks
                packet.pts = (field.frame + 1) * TICKS_A_FRAME + number % 2 * field_ticks
                packet.is_keyframe = field.is_entry
                muxer.mux(packet)

    return make


def _h264_fields(*, packets_a_frame: int) -> Recipe:
    return _fields(H264_FIELDS, "fields.h264", packets_a_frame=packets_a_frame, keyframes=range(1))


def _frames_then_fields(folder: ClipFolder, target: Path) -> None:
    """Ten pictures that are frames, then fields in packets of their own."""
    frames, fields = field_pictures.coded_frames(10), H264_FIELDS[20:]
    packets = [*((data, TICKS_A_FRAME) for data in frames), *((data, TICKS_A_FRAME // 2) for data in fields)]
    with av.open(str(folder.get("fields.h264"))) as raw, av.open(str(target), "w") as muxer:
        stream = muxer.add_stream_from_template(raw.streams.video[0])
        at = 0
        for number, (data, ticks) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 90_000)
            packet.pts, packet.dts, packet.is_keyframe = at, at, number == 0
            muxer.mux(packet)
            at += ticks


def _mpeg2_fields(*, packets_a_frame: int, is_intra_only: bool = False) -> Recipe:
    if is_intra_only:
        return _fields(
            MPEG2_INTRA_FIELDS, "fields_intra.m2v", packets_a_frame=packets_a_frame, keyframes=range(100)
        )
    return _fields(MPEG2_FIELDS, "fields.m2v", packets_a_frame=packets_a_frame, keyframes=range(0, 100, 24))


def _raw(fields: list[bytes]) -> Recipe:
    return lambda _folder, target: _write(target, b"".join(fields))


def _write(target: Path, data: bytes) -> None:
    target.write_bytes(data)


RECIPES: dict[str, Recipe] = {
    "h264.mp4": H264,
    "h264_fragments.mp4": [*H264, "-movflags", "frag_keyframe+empty_moov"],
    "h264_front.mp4": [*H264, "-movflags", "+faststart"],
    "h264_sound.mov": ["-f", "lavfi", "-i", "sine=duration=2", *H264, "-c:a", "aac"],
    "h264_open_gop.mkv": [*H264, *OPEN_GOP],
    "h264.ts": H264,
    "h264.flv": H264,
    "h264.avi": H264,
    "h264.h264": H264,
    "h264_refresh.mkv": [*H264, "-x264-params", "intra-refresh=1:keyint=20"],
    "h264_one_gop.mp4": [*H264, "-g", "500"],
    "h264_interlaced.ts": [*H264, *INTERLACED, "-x264-params", "tff=1"],
    "h264_422_10.mkv": [*H264, "-pix_fmt", "yuv422p10le"],
    "h264_444_odd.mkv": [*H264, "-vf", "scale=127:71", "-pix_fmt", "yuv444p"],
    "h264_full_range.mp4": [*H264, "-pix_fmt", "yuvj420p", "-color_range", "pc"],
    "h264_bt709.mp4": [*H264, "-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"],
    "fields.h264": _raw(H264_FIELDS),
    "fields.ts": _h264_fields(packets_a_frame=1),
    "fields.mkv": _h264_fields(packets_a_frame=1),
    "fields_apart.ts": _h264_fields(packets_a_frame=2),
    "fields_apart.mkv": _h264_fields(packets_a_frame=2),
    "fields_apart.mp4": _h264_fields(packets_a_frame=2),
    "fields_apart_later.mp4": _frames_then_fields,
    "b_fields.h264": _raw([field.data for field in H264_B_FIELDS]),
    "b_fields_apart.ts": _b_fields(H264_B_FIELDS, "b_fields.h264"),
    "b_fields_apart.mkv": _b_fields(H264_B_FIELDS, "b_fields.h264"),
    "b_fields_apart.mp4": _b_fields(H264_B_FIELDS, "b_fields.h264"),
    "mpeg2_b_fields.m2v": _raw([field.data for field in MPEG2_B_FIELDS]),
    "mpeg2_b_fields_apart.ts": _b_fields(MPEG2_B_FIELDS, "mpeg2_b_fields.m2v"),
    "mpeg2_b_fields_apart.mkv": _b_fields(MPEG2_B_FIELDS, "mpeg2_b_fields.m2v"),
    "fields.m2v": _raw(MPEG2_FIELDS),
    "fields_intra.m2v": _raw(MPEG2_INTRA_FIELDS),
    "mpeg2_fields.ts": _mpeg2_fields(packets_a_frame=1),
    "mpeg2_fields.mpg": _mpeg2_fields(packets_a_frame=1),
    "mpeg2_fields.mkv": _mpeg2_fields(packets_a_frame=1),
    "mpeg2_fields_apart.ts": _mpeg2_fields(packets_a_frame=2),
    "mpeg2_fields_apart.mpg": _mpeg2_fields(packets_a_frame=2),
    "mpeg2_fields_apart.mkv": _mpeg2_fields(packets_a_frame=2),
    "mpeg2_intra_fields_apart.ts": _mpeg2_fields(packets_a_frame=2, is_intra_only=True),
    "mpeg2_intra_fields_apart.mkv": _mpeg2_fields(packets_a_frame=2, is_intra_only=True),
    "hevc_open_gop.mp4": HEVC,
    "hevc_open_gop.ts": HEVC,
    "hevc_10.mkv": HEVC_10,
    "hevc.mov": [*HEVC_10, "-pix_fmt", "yuv420p"],
    "vp8.webm": ["-c:v", "libvpx", *ALT_REF],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-cpu-used", "5", *ALT_REF],
    "vp9.mp4": ["-c:v", "libvpx-vp9", "-cpu-used", "5", *ALT_REF],
    "av1.mp4": ["-c:v", "libaom-av1", "-cpu-used", "8", "-g", "12", "-b:v", "100k"],
    "mpeg2_interlaced.ts": [*MPEG2, *INTERLACED],
    "mpeg2.mpg": MPEG2,
    "mpeg2.mkv": MPEG2,
    "mpeg4.mp4": ["-c:v", "mpeg4", "-g", "12", "-bf", "2"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-g", "12", "-bf", "2"],
    "mjpeg.mov": ["-c:v", "mjpeg", "-q:v", "3"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-q:v", "3"],
    "prores.mov": ["-c:v", "prores_ks", "-profile:v", "1"],
    "flv1.flv": ["-c:v", "flv", "-g", "12"],
    "wmv2.asf": ["-c:v", "wmv2", "-g", "12"],
    "png.mov": ["-c:v", "png"],
    "qtrle.mov": ["-c:v", "qtrle"],
    "rpza.mov": ["-c:v", "rpza"],
    "svq1.mov": ["-c:v", "svq1"],
    "zmbv.avi": ["-c:v", "zmbv"],
    "msvideo1.avi": ["-c:v", "msvideo1"],
    "jpeg2000.mxf": ["-c:v", "jpeg2000"],
    "cfhd.mov": ["-c:v", "cfhd"],
    "rv20.rm": ["-c:v", "rv20"],
    "flashsv.flv": ["-c:v", "flashsv"],
    "animation.gif": [],
    "animation.apng": [],
    "plain.y4m": ["-pix_fmt", "yuv420p"],
    "theora.ogg": ["-c:v", "libtheora", "-g", "12"],
    "vfr.mkv": [*VFR, *H264],
    "vfr.mp4": [*VFR, *H264],
    "wide_pixels.mp4": ["-vf", "setsar=4/3", *H264],
    "rotated_90.mp4": _remux("h264.mp4", "-metadata:s:v", "rotate=90"),
    "rotated_180.mp4": _remux("h264.mp4", "-metadata:s:v", "rotate=180"),
    "rotated_270.mov": _remux("h264.mp4", "-metadata:s:v", "rotate=270"),
    "edit_list.mov": _remux("h264.mp4", before=("-ss", "0.7")),
    "edit_list_late.mp4": _remux("h264.mp4", before=("-itsoffset", "1.5")),
    "far_from_zero.ts": _remux("h264.ts", "-output_ts_offset", "90000"),
    "below_zero.mkv": _remux("h264.mp4", "-output_ts_offset", "-100", "-avoid_negative_ts", "disabled"),
    "joined.ts": _joined("h264.ts", "h264.ts"),
    "cut_start.ts": _tail("h264.ts", 188 * 150),
    "other_size.ts": ["-vf", "scale=192:108", *H264],
    "large.mp4": ["-vf", "scale=1920:1080", *H264, "-preset", "ultrafast", "-refs", "8", "-frames:v", "24"],
    "size_change.ts": _joined("h264.ts", "other_size.ts"),
}


class ClipFolder:
    """Makes each clip once, on first demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> Path:
        path = self._folder / name
        if not path.exists():
            unfinished = path.with_name(f"making-{name}")
            recipe = RECIPES[name]
            if callable(recipe):
                recipe(self, unfinished)
            else:
                ffmpeg(*SOURCE, *recipe, unfinished)
            unfinished.rename(path)
        return path


def has_ffmpeg() -> bool:
    return shutil.which("ffmpeg") is not None
