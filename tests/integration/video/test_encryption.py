"""An encrypted video is refused by what its container says, whatever a decoder would make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clips import ClipFolder, ffmpeg
from hostile_files import element
from reading import read_video

from app.errors import EncryptedVideo
from app.video.decoder import DecoderPool

PACKET = 188
VIDEO_PID, SOUND_PID = 0x100, 0x101
H264, SAMPLE_AES_H264 = 0x1B, 0xDB
CONTENT_ENCRYPTION = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")


@pytest.mark.parametrize(
    "name", ["encrypted_cbcs.mp4", "encrypted_cbcs_sgpd.mp4", "encrypted_cenc_prog_8s.mp4"]
)
def test_files_from_elsewhere_are_refused(name: str, failing_videos: Path, pool: DecoderPool) -> None:
    with pytest.raises(EncryptedVideo):
        read_video(pool, failing_videos / name)


def test_sound_may_be_encrypted_beside_clear_video(
    clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    """Key data in the file proves nothing either."""
    target = tmp_path / "both.mov"
    data = clips.get("h264_sound.mov").read_bytes()
    at = data.index(b"mp4a")
    key_data = (32).to_bytes(4, "big") + b"pssh" + bytes(24)
    target.write_bytes(data[:at] + b"enca" + data[at + 4 :] + key_data)
    assert len(read_video(pool, target).frames) == 50


def test_any_encrypted_sample_entry_of_the_video_is_enough(
    clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(clips.get("h264.mp4").read_bytes().replace(b"avc1", b"encv", 2))
    with pytest.raises(EncryptedVideo):
        read_video(pool, target)


def _packets(data: bytes, change: Callable[[bytearray, int, int], None]) -> bytes:
    """Call `change` with each transport packet, its PID and its number among those of the PID."""
    result = bytearray()
    counts: dict[int, int] = {}
    for at in range(0, len(data), PACKET):
        packet = bytearray(data[at : at + PACKET])
        pid = int.from_bytes(packet[1:3], "big") & 0x1FFF
        counts[pid] = counts.get(pid, -1) + 1
        change(packet, pid, counts[pid])
        result += packet
    return bytes(result)


def _scrambled(of_ten: int, pid: int) -> Callable[[bytearray, int, int], None]:
    def change(packet: bytearray, own: int, number: int) -> None:
        if own == pid and number % 10 < of_ten:
            packet[3] |= 0x80

    return change


@pytest.mark.parametrize(
    ("of_ten", "pid", "is_refused"), [(10, VIDEO_PID, True), (3, VIDEO_PID, False), (10, SOUND_PID, False)]
)
def test_a_scrambled_transport_stream_is_refused_for_its_videos_packets(
    of_ten: int, pid: int, is_refused: bool, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    made, target = tmp_path / "made.ts", tmp_path / "scrambled.ts"
    ffmpeg("-i", clips.get("h264_sound.mov"), "-c", "copy", made)
    target.write_bytes(_packets(made.read_bytes(), _scrambled(of_ten, pid)))
    if is_refused:
        with pytest.raises(EncryptedVideo):
            read_video(pool, target)
    else:
        assert read_video(pool, target).summary.frames_indexed > 0


def _check_sum(section: bytes) -> bytes:
    value = 0xFFFFFFFF
    for byte in section:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value.to_bytes(4, "big")


def _with_stream_type(kind: int) -> Callable[[bytearray, int, int], None]:
    def change(packet: bytearray, pid: int, _number: int) -> None:
        if pid != 0x1000:  # of ffmpeg's program map
            return
        section = packet[5 : 8 + (int.from_bytes(packet[6:8], "big") & 0xFFF)]
        section[12] = kind
        section[-4:] = _check_sum(bytes(section[:-4]))
        packet[5 : 5 + len(section)] = section

    return change


@pytest.mark.parametrize(("kind", "is_refused"), [(SAMPLE_AES_H264, True), (H264, False)])
def test_apples_sample_encryption_is_known_by_its_stream_type(
    kind: int, is_refused: bool, clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    """FFmpeg takes such a stream for H.264, and its decoder conceals what it cannot read."""
    target = tmp_path / "sample_aes.ts"
    target.write_bytes(_packets(clips.get("h264.ts").read_bytes(), _with_stream_type(kind)))
    if is_refused:
        with pytest.raises(EncryptedVideo):
            read_video(pool, target)
    else:
        assert len(read_video(pool, target).frames) == 50


def test_windows_media_with_an_encryption_object_is_refused(
    clips: ClipFolder, pool: DecoderPool, tmp_path: Path
) -> None:
    data = bytearray(clips.get("wmv2.asf").read_bytes())
    header_bytes = int.from_bytes(data[16:24], "little")
    objects = int.from_bytes(data[24:28], "little")
    added = CONTENT_ENCRYPTION + (40).to_bytes(8, "little") + bytes(16)
    data[header_bytes:header_bytes] = added
    data[16:24] = (header_bytes + len(added)).to_bytes(8, "little")
    data[24:28] = (objects + 1).to_bytes(4, "little")
    target = tmp_path / "protected.wmv"
    target.write_bytes(data)
    with pytest.raises(EncryptedVideo):
        read_video(pool, target)


def test_matroska_with_a_key_is_refused(clips: ClipFolder, pool: DecoderPool, tmp_path: Path) -> None:
    key_id = element(0x47E2, b"0123456789abcdef")
    encryption = element(0x5035, element(0x47E1, b"\x05"), key_id)
    encodings = element(0x6D80, element(0x6240, element(0x5033, b"\x01"), encryption))
    target = tmp_path / "encrypted.webm"
    target.write_bytes(_with_track_element(clips.get("vp8.webm").read_bytes(), encodings))
    with pytest.raises(EncryptedVideo):
        read_video(pool, target)


def _with_track_element(data: bytes, added: bytes) -> bytes:
    """Add an element to the first track."""
    return _grown(data, (b"\x18S\x80g", b"\x16T\xaek", b"\xae"), added)


def _grown(data: bytes, path: tuple[bytes, ...], added: bytes) -> bytes:
    """Add to the first element of that path, each a name among the children of the one before."""
    at = 0
    while True:
        name_bytes = 9 - data[at].bit_length()
        size_bytes = 9 - data[at + name_bytes].bit_length()
        start = at + name_bytes + size_bytes
        size = int.from_bytes(data[at + name_bytes : start], "big") & (1 << 7 * size_bytes) - 1
        name, end = data[at : at + name_bytes], min(len(data), start + size)
        if name == path[0]:
            break
        at = end
    content = data[start:end]
    content = _grown(content, path[1:], added) if path[1:] else content + added
    return data[:at] + name + (len(content) | 1 << 56).to_bytes(8, "big") + content + data[end:]
