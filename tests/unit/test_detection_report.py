"""The report of a run is the same JSON, byte for byte, whatever builds it: clients and stores rely on it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from index_summary import index
from sample_reports import SHA256, model_report

from app.pipeline.completeness import FrameTally, completeness_report
from app.pipeline.detect_video import _video_report
from app.pipeline.report import DetectionReport, DocumentReport
from app.video.damage import DamagedPlace
from app.video.protocol.facts import OtherStream, Proof, StreamKind, VideoFacts
from app.video.results import DecodeOutcome
from app.video.segments import FrameRange

FACTS = VideoFacts(
    container="mov",
    codec="h264",
    pixel_format="yuv420p",
    width=768,
    height=432,
    rotation_degrees=90,
    mirrored=True,
    time_base=Fraction(1),
    frame_rate=Fraction(30000, 1001),
    duration_seconds=12.345678901,
    stream_index=1,
    sample_aspect_ratio=Fraction(4, 3),
    other_streams=(
        OtherStream(0, StreamKind.AUDIO, "aac", language="eng", is_default=True),
        OtherStream(2, StreamKind.VIDEO, "mjpeg", 100, 50, is_picture=True),
        OtherStream(3, StreamKind.DATA, ""),
    ),
)
MODEL_JSON = f'"model":{{"name":"people","sha256":"{SHA256}","device":"cpu","labels":["person","ä"]}}'
MODEL = model_report("people", "person", "ä")


def test_what_is_known_before_the_index_is_whole() -> None:
    report = DetectionReport(model=MODEL, video=_video_report(FACTS))
    assert report.model_dump_json() == (
        f"{{{MODEL_JSON},"
        '"video":{"container":"mov","codec":"h264","pixel_format":"yuv420p","width":768,"height":432,'
        '"rotation_degrees":90,"mirrored":true,"frame_rate":"30000/1001","sample_aspect_ratio":"4/3",'
        '"time_base":"1/1","start_seconds":null,"duration_seconds":12.345678901,"stream":1,"other_streams":['
        '{"index":0,"kind":"audio","codec":"aac","width":null,"height":null,"language":"eng","default":true,'
        '"picture":false},'
        '{"index":2,"kind":"video","codec":"mjpeg","width":100,"height":50,"language":null,"default":false,'
        '"picture":true},'
        '{"index":3,"kind":"data","codec":null,"width":null,"height":null,"language":null,"default":false,'
        '"picture":false}]},'
        '"completeness":null,"document":null}'
    )


def test_what_is_known_at_the_end() -> None:
    facts = replace(FACTS, frame_rate=None, time_base=Fraction(1, 90000), other_streams=(), mirrored=False)
    tally = FrameTally()
    tally.add(
        DecodeOutcome(
            97,
            undecodable=(FrameRange(3, 4, "refused"),),
            corrupt=(FrameRange(7, 9),),
            doubtful=(FrameRange(10, 12),),
        )
    )
    summary = index(
        lost=(20, 21, 60),
        damage=(
            DamagedPlace(4711, 1.5, 30, 33, "a gap", 2),
            DamagedPlace(None, None, None, None, "ä", 1, harmless=True),
        ),
        damage_total=3,
        notes=("one", "two"),
        start_pts=126000,
        duration_seconds=4.00000049,
        variable_frame_rate=True,
        proof=Proof.CLOCK,
    )
    report = DetectionReport(
        model=MODEL,
        video=_video_report(facts, summary),
        completeness=completeness_report(tally, summary),
        document=DocumentReport(bytes=123, sha256="cd" * 32),
    )
    text = report.model_dump_json()
    assert text == (
        f"{{{MODEL_JSON},"
        '"video":{"container":"mov","codec":"h264","pixel_format":"yuv420p","width":768,"height":432,'
        '"rotation_degrees":90,"mirrored":false,"frame_rate":null,"sample_aspect_ratio":"4/3",'
        '"time_base":"1/90000","start_seconds":1.4,"duration_seconds":4.0,"stream":1,"other_streams":[],'
        '"variable_frame_rate":true},'
        '"completeness":{"complete":false,"frames_indexed":100,"frames_wanted":100,"frames_analysed":97,'
        '"frames_undecodable":5,"undecodable":[{"first":3,"last":4,"reason":"refused"},'
        '{"first":20,"last":21,"reason":"the data is missing from the file"},'
        '{"first":60,"last":60,"reason":"the data is missing from the file"}],'
        '"undecodable_ranges_left_out":0,"frames_corrupt":3,"corrupt":[{"first":7,"last":9}],'
        '"frames_doubtful":3,"doubtful":[{"first":10,"last":12}],"frames_without_id":0,"truncated":false,'
        '"damage":[{"position":4711,"seconds":1.5,"first_frame":30,"last_frame":33,"reason":"a gap",'
        '"observations":2,"harmless":false},{"position":null,"seconds":null,"first_frame":null,'
        '"last_frame":null,"reason":"ä","observations":1,"harmless":true}],"damage_left_out":1,'
        '"proof":"clock","notes":["one","two"]},'
        f'"document":{{"bytes":123,"sha256":"{"cd" * 32}"}}}}'
    )
    assert DetectionReport.model_validate_json(text) == report


def test_a_duration_or_a_start_that_the_index_does_not_know() -> None:
    summary = index(start_pts=None, duration_seconds=None)
    video = _video_report(FACTS, summary)
    assert (video.start_seconds, video.duration_seconds) == (None, 12.345678901)
    assert video.variable_frame_rate is False
