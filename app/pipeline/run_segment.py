"""What a host does of a video: index it, and run its segments (decode, detect, write the part)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager

from app.detection.detector import Detections
from app.detection.device import DeviceThread
from app.detection.resize import fit_within
from app.pipeline.frame_records import encode_records
from app.pipeline.runner import IndexItem, IndexTask
from app.pipeline.segment_task import SegmentOutcome, SegmentTask, outcome_of, plan_of
from app.storage.parts import PartStore
from app.video.decoder import DecoderPool
from app.video.results import Cancelled, FrameBatch, IndexSummary

BATCHES_IN_FLIGHT = 2  # one on the device, one that waits for it; the ring holds at least as many


def index_video(
    decoders: DecoderPool, task: IndexTask, found: Callable[[IndexItem], None], cancelled: Cancelled
) -> IndexSummary:
    """Index a video in this thread, and call `found` with its facts, and with each segment as it is found.

    Raises the video's fault, or WorkCancelled.
    """
    with decoders.index(
        task.video, segment_frames=task.segment_frames, sampling=task.sampling, cancelled=cancelled
    ) as index:
        found(index.facts)
        for segment in index:
            found(segment)
        return index.summary


def run_segment(
    task: SegmentTask,
    *,
    decoders: DecoderPool,
    device: DeviceThread,
    cancelled: Cancelled,
    seconds: dict[str, float],
    advance: Callable[[int], None],
) -> SegmentOutcome:
    """Decode and analyse `task`; its part is whole and durable when this returns.

    The time of each phase is added to `seconds`. `advance` is called with the number of frames done since the
    last call. Raises the errors of the decoder and of the model; OSError if the part cannot be written.
    """
    store = PartStore(task.parts_folder)
    width, height = task.facts.width, task.facts.height
    given_size = fit_within(width, height, task.max_side or max(width, height))
    with (
        decoders.decode(
            task.video,
            task.segment,
            frame_size=device.detector.frame_size(*given_size),
            batch_size=device.batch_size,
            cancelled=cancelled,
        ) as session,
        store.write(task.segment.number) as writer,
    ):
        with closing(_detected(iter(session), device, task.job_id, seconds)) as detected:
            for batch, found in detected:
                with _timed(seconds, "encode"):
                    height, width = batch.frames.shape[1:3]
                    records = encode_records(
                        batch.frame_ids.tolist(),
                        found,
                        given_size=(width, height),
                        source_size=batch.source_size,
                        rules=task.rules,
                    )
                    writer.append(records, batch.pts.tolist())
                    batch.release()
                advance(len(found))
        outcome = session.outcome
        advance(sum(gap.frame_count for gap in outcome.undecodable))
        writer.finish(
            {
                "plan": plan_of(task),
                "analysed": outcome.frames_decoded,
                "corrupt": [[stretch.first, stretch.last] for stretch in outcome.corrupt],
                "doubtful": [[stretch.first, stretch.last] for stretch in outcome.doubtful],
                "undecodable": [[gap.first, gap.last, gap.reason] for gap in outcome.undecodable],
            }
        )
    part = store.read(task.segment.number)
    if part is None:
        raise FileNotFoundError("the part is gone")
    return outcome_of(part)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the time that the block takes to `seconds` of `phase`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started


def _detected(
    batches: Iterator[FrameBatch], device: DeviceThread, job_id: str, seconds: dict[str, float]
) -> Generator[tuple[FrameBatch, list[Detections]]]:
    """Yield (batch, its detections) in order, one batch behind: the device works while frames are decoded."""
    waiting: deque[tuple[FrameBatch, Future[list[Detections]]]] = deque()
    try:
        while True:
            with _timed(seconds, "wait_for_frames"):
                batch = next(batches, None)
            if batch is None:
                break
            waiting.append((batch, device.submit(batch.frames, owner=job_id)))
            if len(waiting) == BATCHES_IN_FLIGHT:
                yield _result(*waiting.popleft(), seconds)
        while waiting:
            yield _result(*waiting.popleft(), seconds)
    finally:
        # After a fault the device may still read frames, whose memory is freed with the session.
        wait([future for _, future in waiting if not future.cancel()])


def _result(
    batch: FrameBatch, future: Future[list[Detections]], seconds: dict[str, float]
) -> tuple[FrameBatch, list[Detections]]:
    with _timed(seconds, "wait_for_device"):
        return batch, future.result()
