"""What is delivered: the frames that were asked for, in batches that depend on settings alone."""

from __future__ import annotations

import functools
import mmap
import pickle
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
from av import library_versions
from clips import ClipFolder
from reading import MIB, child_of, never, read_video, same_frames

from app.errors import VideoOverLimit
from app.video.child.channel import Channel, SharedPictures
from app.video.child.container import OpenOptions, PacketReader
from app.video.child.decoding import MatchingDecoder
from app.video.decoder import DecoderPool
from app.video.protocol.limits import VideoLimits
from app.video.protocol.messages import BatchMessage, Command, FrameStatus, Message
from app.video.protocol.ring import HEADER_BYTES
from app.video.sampling import Sampling

SAMPLINGS = {
    "every third frame": (Sampling(stride=3), set(range(0, 50, 3))),
    "five a second": (Sampling(fps=5), set(range(0, 50, 5))),
    "a range": (Sampling(start_seconds=0.6, end_seconds=1.2), set(range(15, 30))),
    "few of a range": (Sampling(stride=10, start_seconds=0.5), {20, 30, 40}),
    "the last frame": (Sampling(start_seconds=1.95), {49}),
    "nothing": (Sampling(start_seconds=60), set()),
}


@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
@pytest.mark.parametrize(
    "name", ["h264_open_gop.mkv", "hevc_open_gop.mp4", "mpeg2.mkv", "vp9.webm", "h264.avi"]
)
def test_sampled_frames_are_those_of_the_whole_video(
    name: str, sampling: str, clips: ClipFolder, pool: DecoderPool
) -> None:
    chosen, ids = SAMPLINGS[sampling]
    whole = read_video(pool, clips.get(name))
    expected = [frame for frame in whole.frames if frame.frame_id in ids]
    for segment_frames in (10, 1000):
        sampled = read_video(pool, clips.get(name), sampling=chosen, segment_frames=segment_frames)
        assert same_frames(sampled.frames, expected)
        assert not sampled.undecodable
        assert sampled.summary.frames_wanted == len(ids)
        assert sampled.summary.frames_indexed == 50


def test_a_range_late_in_a_segment_is_entered_late(clips: ClipFolder, pool: DecoderPool) -> None:
    sampling = Sampling(start_seconds=1.6)
    with pool.index(clips.get("h264.mp4"), segment_frames=1000, sampling=sampling, cancelled=never) as index:
        (segment,) = index
    with pool.decode(
        clips.get("h264.mp4"), segment, frame_size=(128, 72), batch_size=4, cancelled=never
    ) as session:
        assert sum(len(batch) for batch in _released(session)) == 10
        assert child_of(session).packets_fed <= 15  # of 50: one GOP


class CountingChannel:
    """Stands where the pipes to the host are: frees every batch at once, and keeps the statuses."""

    def __init__(self) -> None:
        self.freed: list[bytes] = []
        self.packets_fed = 0
        self.statuses = b""

    def send(self, kind: Message, payload: bytes = b"") -> None:
        if kind is Message.BATCH:
            self.freed.append(BatchMessage.unpack(payload).slot.to_bytes(4, "little"))
        elif kind is Message.SEGMENT_END:
            self.statuses = payload

    def show_read(self, packets: int) -> None: ...

    def show_fed(self, packets: int) -> None:
        self.packets_fed = packets

    def show_opening(self) -> AbstractContextManager[None]:
        return nullcontext()

    def receive(self) -> tuple[Command, bytes]:
        return Command.RELEASE, self.freed.pop(0)


# sampling: (packets that the decoder is given, pictures that it makes) at most, of 50
WORK = {
    "every frame": (Sampling(), 50, 50),
    "every tenth frame": (Sampling(stride=10), 50, 30),
    "a second's fifth": (Sampling(start_seconds=1.0, end_seconds=1.2), 20, 16),
    "the end": (Sampling(start_seconds=1.92), 4, 2),
}


@pytest.mark.parametrize("sampling", WORK)
def test_what_sampling_leaves_out_is_not_decoded(sampling: str, clips: ClipFolder, pool: DecoderPool) -> None:
    """H.264 with a keyframe every 12 frames and B-frames that no other needs."""
    chosen, most_packets, most_pictures = WORK[sampling]
    video = clips.get("h264.mp4")
    with pool.index(video, segment_frames=1000, sampling=chosen, cancelled=never) as index:
        (segment,) = index
    with pool.decode(video, segment, frame_size=(64, 36), batch_size=4, cancelled=never) as session:
        request = session._request_from(0, skipped=())
    assert request is not None
    counting = CountingChannel()
    channel = cast("Channel", counting)  # it does what a decoder asks of one
    size = request.slot_count * request.batch_size * request.frame_bytes
    ring = SharedPictures(mmap.mmap(-1, HEADER_BYTES + size))
    with video.open("rb") as file:
        reader = PacketReader(OpenOptions(file.fileno(), 1, VideoLimits()), channel)
        MatchingDecoder(reader, channel, ring, request).run()
        reader.close()
    pictures = sum(status in (FrameStatus.DECODED, FrameStatus.CORRUPT) for status in counting.statuses)
    assert segment.wanted_count <= pictures <= most_pictures
    assert counting.packets_fed <= most_packets


def _released(session):
    for batch in session:
        yield batch
        batch.release()


def test_batches_depend_on_the_ring_only_through_the_size_that_fits(clips: ClipFolder) -> None:
    frame_bytes = 128 * 72 * 3
    for ring_frames, expected in ((64, 8), (16, 8), (10, 5), (2, 1)):
        with DecoderPool(
            limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=ring_frames * frame_bytes
        ) as pool:
            assert pool.effective_batch_size((128, 72), 8) == expected
            video = read_video(pool, clips.get("h264.mp4"), batch_size=8)
        assert len(video.frames) == 50
        assert set(video.batch_sizes[:-1]) == {expected}
    with (
        DecoderPool(limits=VideoLimits(), memory_bytes=512 * MIB, ring_bytes=frame_bytes) as pool,
        pytest.raises(VideoOverLimit),
    ):
        read_video(pool, clips.get("h264.mp4"))


def test_the_identity_holds_all_that_decides_a_picture_as_the_first_child_tells_it(pool: DecoderPool) -> None:
    make_pool = functools.partial(DecoderPool, limits=VideoLimits(), memory_bytes=512 * MIB)
    with pytest.raises(RuntimeError, match="not started"):
        _ = make_pool(ring_bytes=16 * MIB).identity
    with (
        make_pool(ring_bytes=16 * MIB) as same,
        make_pool(ring_bytes=8 * MIB) as smaller,
        make_pool(ring_bytes=16 * MIB, threads=2) as wider,
    ):
        assert pool.identity == same.identity
        assert len({pool.identity, smaller.identity, wider.identity}) == 3
    for name, version in library_versions.items():
        assert f"{name} {'.'.join(map(str, version))}" in pool.identity


def test_batches_may_be_held_while_the_next_is_decoded(clips: ClipFolder, pool: DecoderPool) -> None:
    whole = read_video(pool, clips.get("h264.mp4"))
    with pool.index(clips.get("h264.mp4"), segment_frames=1000, cancelled=never) as index:
        (segment,) = index
    with pool.decode(
        clips.get("h264.mp4"), segment, frame_size=(128, 72), batch_size=5, cancelled=never
    ) as session:
        for before, _ in pairwise(session):
            for frame_id, pixels in zip(before.frame_ids, before.frames, strict=True):
                assert np.array_equal(pixels, whole.frames[frame_id].pixels)
            before.release()


def test_rings_are_pinned_of_children_that_decode_and_once_each(clips: ClipFolder) -> None:
    pinned: list[int] = []
    video = clips.get("h264.mp4")
    with DecoderPool(
        limits=VideoLimits(),
        memory_bytes=512 * MIB,
        ring_bytes=4 * MIB,
        pin=lambda memory: pinned.append(memory.nbytes),
    ) as pool:
        with pool.index(video, segment_frames=20, cancelled=never) as index:
            segments = list(index)
        assert pinned == []
        assert len(segments) > 1
        for segment in segments:  # by the child that indexed, which goes from hand to hand
            with pool.decode(video, segment, frame_size=(128, 72), batch_size=5, cancelled=never) as session:
                assert sum(len(batch.frames) for batch in _released(session)) > 0
    assert pinned == [4 * MIB + 4096]


def test_a_consumer_that_releases_nothing_is_told(clips: ClipFolder, pool: DecoderPool) -> None:
    with pool.index(clips.get("h264.mp4"), segment_frames=1000, cancelled=never) as index:
        (segment,) = index
    with (
        pool.decode(
            clips.get("h264.mp4"), segment, frame_size=(128, 72), batch_size=1, cancelled=never
        ) as session,
        pytest.raises(RuntimeError, match="release"),
    ):
        list(session)


def test_frames_are_a_view_into_the_ring(clips: ClipFolder, pool: DecoderPool) -> None:
    with pool.index(clips.get("h264.mp4"), segment_frames=1000, cancelled=never) as index:
        (segment,) = index
    with pool.decode(
        clips.get("h264.mp4"), segment, frame_size=(128, 72), batch_size=4, cancelled=never
    ) as session:
        batch = next(iter(session))
        assert np.shares_memory(batch.frames, child_of(session).memory)
        assert batch.frames.flags.writeable  # as torch wants memory to be that it does not copy


def test_segments_travel(clips: ClipFolder, pool: DecoderPool) -> None:
    with pool.index(clips.get("h264.h264"), segment_frames=10, cancelled=never) as index:
        segments = list(index)
    for segment in segments:
        copy = pickle.loads(pickle.dumps(segment))  # noqa: S301 - our own
        assert (copy.number, copy.entry, copy.frames_before) == (
            segment.number,
            segment.entry,
            segment.frames_before,
        )
        assert np.array_equal(copy.pts, segment.pts)


def test_segments_of_counted_frames_may_be_read_in_any_order(clips: ClipFolder, pool: DecoderPool) -> None:
    video = clips.get("h264.h264")
    whole = read_video(pool, video)
    with pool.index(video, segment_frames=10, cancelled=never) as index:
        segments = list(index)
    for segment in [segments[3], segments[0], segments[4], segments[1]]:
        with pool.decode(video, segment, frame_size=(128, 72), batch_size=4, cancelled=never) as session:
            for batch in _released(session):
                for frame_id, pixels in zip(batch.frame_ids, batch.frames, strict=True):
                    assert np.array_equal(pixels, whole.frames[frame_id].pixels)
            assert session.outcome.frames_decoded == 10
