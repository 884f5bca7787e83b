"""Damaged videos whose frames carry their numbers: what is lost is said, and what is left has its own id."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from numbered import answer, write_numbered

from app.video.decoder import DecoderPool

# name: frames that ffmpeg decodes
DAMAGED = {
    "flv1__cut_20k_43.flv": 67,
    "h264__cut_20k_43.avi": 70,
    "h264__cut_20k_43.h264": 70,
    "h264__insert_500_43.mkv": 73,
    "h264__trunc_60.ts": 46,
    "h264__tsdrop_100.ts": 71,
    "h264__zeros_20k_43.flv": 69,
    "h264__zeros_20k_43.mkv": 33,
    "h264__zeros_20k_43.ts": 71,
    "hevc__trunc_1k.ts": 79,
    "hevc__zerotail_5pct.mkv": 74,
    "hevc__zerotail_5pct.ts": 74,
    "mjpeg__zeros_20k_43.avi": 73,
    "mpeg2__cut_500_43.mpg": 79,
    "mpeg2__tsdrop_100.ts": 75,
    "mpeg2__zeros_20k_43.mpg": 73,
    "mpeg2__zeros_20k_43.ts": 74,
    "mpeg4__zeros_20k_43.avi": 63,
    "mpeg4_nob__zeros_20k_43.avi": 68,
    "theora__cut_500_43.ogv": 66,
    "theora__trunc_60.ogv": 41,
    "vp8__zeros_20k_43.webm": 35,
    "vp8_snd__zeros_5pct_43.webm": 75,
    "vp9__insert_500_43.webm": 71,
    "vp9__zeros_20k_43.webm": 47,
    "wmv2__cut_500_43.wmv": 76,
    "wmv2__zeros_20k_43.wmv": 67,
}
# Their frames have time stamps of their own, which name the frames that are left.
WITH_STAMPS = (".mkv", ".webm", ".ts", ".flv")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_video_is_not_called_complete(name: str, failing_damage: Path, pool: DecoderPool) -> None:
    found = answer(pool, failing_damage / name)
    assert len(found.numbers) >= DAMAGED[name]
    assert found.completeness.complete is False
    assert found.completeness.damage or found.completeness.notes or found.completeness.undecodable


@pytest.mark.parametrize("name", [name for name in DAMAGED if name.endswith(WITH_STAMPS)])
def test_frames_after_damage_have_the_ids_of_the_intact_video(
    name: str, failing_damage: Path, pool: DecoderPool
) -> None:
    """But for pictures that are built on what is missing, which the report names."""
    found = answer(pool, failing_damage / name)
    assert found.wrong <= found.ids_in("corrupt") | found.ids_in("doubtful")
    listed = set(found.numbers) | found.ids_in("undecodable")
    assert listed == set(range(found.completeness.frames_indexed))


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize("seed", [11, 20, 21, 22])
def test_a_program_stream_whose_damaged_frames_lack_stamps_comes_back_to_its_ids(
    codec: str, seed: int, tmp_path: Path, pool: DecoderPool
) -> None:
    """Program streams stamp packs, not frames: after damage frames are counted, and some have no stamp."""
    video = tmp_path / "numbered.mpg"
    write_numbered(video, codec, "mpeg", frames=120)
    data = bytearray(video.read_bytes())
    random = Random(seed)
    for _ in range(4):
        at = random.randrange(len(data) // 10, len(data) // 2)
        del data[at : at + random.choice([100, 1000, 3000])]
    video.write_bytes(data)
    found = answer(pool, video)
    assert found.completeness.complete is False
    assert {n: found.numbers[n] for n in range(90, 120)} == {n: n for n in range(90, 120)}


def test_where_a_table_lists_the_samples_each_that_gives_no_picture_counts(
    failing_damage: Path, pool: DecoderPool
) -> None:
    found = answer(pool, failing_damage / "hevc__flip_200.mp4")
    assert len(found.numbers) == 159
    assert found.completeness.frames_without_id == 1
    assert found.completeness.complete is False


@pytest.mark.parametrize("name", ["false_alarm__offset_start_50s.mkv", "false_alarm__trailing_aud.h264"])
def test_an_intact_video_is_called_complete(name: str, failing_damage: Path, pool: DecoderPool) -> None:
    found = answer(pool, failing_damage / name)
    assert found.completeness.complete is True
    assert not found.completeness.damage
    assert not found.wrong


@pytest.mark.parametrize("name", [*DAMAGED, "hevc__flip_200.mp4"])
def test_ids_do_not_depend_on_the_length_of_segments(
    name: str, failing_damage: Path, pool: DecoderPool
) -> None:
    long, short = (
        answer(pool, failing_damage / name, segment_frames=frames).completeness for frames in (120, 15)
    )
    for member in ("frames_indexed", "complete", "damage", "undecodable", "notes"):
        assert getattr(short, member) == getattr(long, member)


@pytest.mark.parametrize(("codec", "start"), [("mpeg2video", b"\0\0\1\0"), ("libx264", b"\0\0\0\1\x41")])
def test_zeros_between_the_pictures_of_a_stream_are_stuffing_and_inside_one_damage(
    codec: str, start: bytes, tmp_path: Path, pool: DecoderPool
) -> None:
    video = tmp_path / "numbered.raw"
    write_numbered(video, codec, {"libx264": "h264"}.get(codec, codec), frames=60)
    data = video.read_bytes()
    video.write_bytes(data.replace(start, bytes(500) + start))
    stuffed = answer(pool, video)
    assert stuffed.completeness.complete is True
    assert stuffed.numbers == {n: n for n in range(60)}
    place = data.index(start, len(data) // 2) + 20
    video.write_bytes(data[:place] + bytes(300) + data[place + 300 :])
    assert answer(pool, video).completeness.complete is False
    video.write_bytes(data[:-1000] + bytes(1000))
    assert answer(pool, video).completeness.complete is False


@pytest.mark.parametrize(
    ("table", "place", "bit", "reason"),
    [
        (b"stsz", 4 + 12 + 4 * 40, 0x80, "a sample larger than the file"),
        (b"ctts", 4 + 8 + 8 * 20 + 4, 0x80, "composition offsets that are not those of all samples"),
        (b"stts", 4 + 8 + 4 + 2, 0x10, "samples whose durations do not add up to the track's"),
    ],
)
def test_an_mp4_whose_tables_contradict_each_other_is_not_called_complete(
    table: bytes, place: int, bit: int, reason: str, tmp_path: Path, pool: DecoderPool
) -> None:
    video = tmp_path / "numbered.mp4"
    write_numbered(video, "libx264", "mp4", frames=120)
    data = bytearray(video.read_bytes())
    data[data.rfind(table) + place] ^= bit
    video.write_bytes(data)
    found = answer(pool, video)
    assert len(found.numbers) < 120
    assert found.completeness.complete is False
    assert [damage.reason for damage in found.completeness.damage] == [reason]
