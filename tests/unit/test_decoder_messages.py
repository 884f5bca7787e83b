"""What a child says is taken apart without trust: it is well formed, or it is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.video.protocol import messages
from app.video.protocol.facts import OtherStream, StreamKind, VideoFacts
from app.video.protocol.messages import (
    BatchMessage,
    CountRequest,
    DecodeRequest,
    DecoderProtocolError,
    Fault,
    FaultCode,
    FoundVideo,
    IndexEnd,
    LockDown,
    Ready,
)
from app.video.protocol.packets import Entry, Evidence, PacketFlag, PacketRecord

READY = Ready(
    LockDown(7, seccomp=True, no_new_privileges=True, memory_limited=True),
    "libavcodec 62.28.102, libavutil 60.26.102",
)
OTHERS = (
    OtherStream(1, StreamKind.AUDIO, "aac", language="eng", is_default=True),
    OtherStream(2, StreamKind.VIDEO, "mjpeg", 640, 480, is_picture=True),
    OtherStream(3, StreamKind.DATA, ""),
)
FACTS = VideoFacts(
    "mov",
    "h264",
    "yuv420p",
    1920,
    1080,
    90,
    Fraction(1, 12800),
    Fraction(30000, 1001),
    12.5,
    0,
    mirrored=True,
    other_streams=OTHERS,
)

READERS: list[Callable[[bytes], object]] = [
    Ready.unpack,
    Fault.unpack,
    messages.unpack_facts,
    IndexEnd.unpack,
    BatchMessage.unpack,
    lambda data: messages.unpack_packets(data, 0),
    lambda data: list(messages.unpack_frames(data)),
    lambda data: messages.unpack_statuses(data, len(data)),
]


@pytest.mark.parametrize("read", READERS)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_understood_or_refused(read: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(DecoderProtocolError):
        read(data)


HONEST = [
    (Ready.unpack, READY.pack()),
    (Fault.unpack, Fault(FaultCode.OVER_LIMIT, "max_side", 5, 6).pack()),
    (messages.unpack_facts, messages.pack_facts(FoundVideo(FACTS, 0))),
    (IndexEnd.unpack, IndexEnd(1, gave_up=False, lost=3, truncated=True).pack()),
    (BatchMessage.unpack, BatchMessage(1, 128, 72, (5, 6), (0, 1)).pack()),
]


@pytest.mark.parametrize(("read", "honest"), HONEST)
@given(place=st.integers(0, 10_000), value=st.binary(min_size=1, max_size=9))
def test_honest_messages_with_bytes_changed_are_understood_or_refused(
    read: Callable[[bytes], object], honest: bytes, place: int, value: bytes
) -> None:
    at = place % len(honest)
    changed = (honest[:at] + value + honest[at + len(value) :])[: len(honest)]
    with contextlib.suppress(DecoderProtocolError):
        read(changed)


@given(st.binary(min_size=8, max_size=8))
def test_any_head_is_understood_or_refused(data: bytes) -> None:
    try:
        _, length = messages.head_of(data)
    except DecoderProtocolError:
        return
    assert length <= messages.MAX_MESSAGE_BYTES


def test_what_a_child_says_of_itself_arrives_as_it_was_sent() -> None:
    assert Ready.unpack(READY.pack()) == READY


@pytest.mark.parametrize("versions", ["", "libavcodec 62\n", "<b>", "v" * 600])
def test_impossible_ffmpeg_versions_are_refused(versions: str) -> None:
    with pytest.raises(DecoderProtocolError):
        Ready.unpack(replace(READY, ffmpeg_versions=versions).pack())


def test_facts_arrive_as_they_were_sent() -> None:
    for found in (FoundVideo(FACTS, -7), FoundVideo(FACTS, None)):
        assert messages.unpack_facts(messages.pack_facts(found)) == found


@pytest.mark.parametrize(
    "other",
    [
        OtherStream(0, StreamKind.AUDIO, "aac"),  # the stream that is read
        OtherStream(2**31, StreamKind.AUDIO, "aac"),
        OtherStream(1, StreamKind.AUDIO, "a\nb"),
    ],
)
def test_impossible_other_streams_are_refused(other: OtherStream) -> None:
    data = messages.pack_facts(FoundVideo(replace(FACTS, other_streams=(other,)), 0))
    with pytest.raises(DecoderProtocolError):
        messages.unpack_facts(data)


def test_more_streams_than_are_told_of_are_refused() -> None:
    others = tuple(OtherStream(number, StreamKind.AUDIO, "aac") for number in range(1, 34))
    data = messages.pack_facts(FoundVideo(replace(FACTS, other_streams=others), 0))
    with pytest.raises(DecoderProtocolError):
        messages.unpack_facts(data)


def test_a_language_loses_the_characters_that_no_language_has() -> None:
    facts = replace(FACTS, other_streams=(OtherStream(1, StreamKind.AUDIO, "aac", language="e\x1bn g"),))
    found = messages.unpack_facts(messages.pack_facts(FoundVideo(facts, 0)))
    assert found.facts.other_streams[0].language == "eng"


@pytest.mark.parametrize("turn", [360, 2**31])
def test_impossible_orientations_are_refused(turn: int) -> None:
    with pytest.raises(DecoderProtocolError):
        messages.unpack_facts(messages.pack_facts(FoundVideo(replace(FACTS, rotation_degrees=turn), 0)))


def test_names_cannot_carry_control_characters() -> None:
    data = messages.pack_facts(FoundVideo(FACTS, None)).replace(b"h264", b"h\n64")
    with pytest.raises(DecoderProtocolError):
        messages.unpack_facts(data)


def test_a_fault_arrives_as_it_was_sent() -> None:
    fault = Fault(FaultCode.OVER_LIMIT, "max_pixels", 100, 2**40)
    assert Fault.unpack(fault.pack()) == fault
    fault = Fault(FaultCode.UNSUPPORTED_CODEC, codec="avs3", supported_codecs=("h264", "hevc"))
    assert Fault.unpack(fault.pack()) == fault
    with pytest.raises(DecoderProtocolError):
        Fault.unpack(Fault(FaultCode.UNSUPPORTED_CODEC, codec="<b>").pack())
    with pytest.raises(DecoderProtocolError):
        Fault.unpack(Fault(FaultCode.UNSUPPORTED_CODEC, supported_codecs=("<b>",)).pack())


def test_packets_arrive_as_they_were_sent() -> None:
    packets = [PacketRecord(5, None, -3, None, 10, PacketFlag.KEY), PacketRecord(6, 2**60, None, 99, 0, 0)]
    assert messages.unpack_packets(messages.pack_packets(packets), 5) == packets


def test_requests_arrive_as_they_were_sent() -> None:
    entry = Entry(9, None, -5, 1234, 77)
    request = DecodeRequest(
        entry, 40, np.arange(6), np.array([1, 0, 1, 1, 0, 1], dtype=np.bool_), 3, 64, 36, 8, 4, (11, 12)
    )
    read = DecodeRequest.unpack(request.pack())
    assert (read.entry, read.packet_count, read.frames_before, read.skipped) == (entry, 40, 3, (11, 12))
    assert (read.width, read.height, read.batch_size, read.slot_count) == (64, 36, 8, 4)
    assert np.array_equal(read.pts, request.pts)
    assert np.array_equal(read.wanted, request.wanted)
    assert CountRequest.unpack(CountRequest(entry, (1, 2)).pack()) == CountRequest(entry, (1, 2))


def test_evidence_and_the_end_of_an_index_arrive_as_they_were_sent() -> None:
    for position in (None, 0, 2**40):
        evidence = Evidence(7, position, 3, "bytes that are no transport packet")
        assert messages.unpack_evidence(messages.pack_evidence(evidence)) == evidence
    for end in (IndexEnd(0, False, 0, False), IndexEnd(3, True, 5, True, 2, 399.96)):
        assert IndexEnd.unpack(end.pack()) == end


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        messages.pack_evidence(Evidence(7, 1, 1, "torn"))[:-1],
        messages.pack_evidence(Evidence(-1, 1, 1, "torn")),
        messages.pack_evidence(Evidence(7, 1, 0, "torn")),
        messages.pack_evidence(Evidence(7, 1, 1, "a line\nand another")),
    ],
)
def test_evidence_that_no_honest_child_sends_is_refused(payload: bytes) -> None:
    with pytest.raises(DecoderProtocolError):
        messages.unpack_evidence(payload)
