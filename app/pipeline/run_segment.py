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
from app.pipeline.frame_records import encode_record
from app.pipeline.runner import Cancelled, IndexReader, IndexTask, WorkCancelled
from app.pipeline.segment_task import SegmentOutcome, SegmentTask, outcome_of, plan_of
from app.storage.parts import PartStore
from app.video.decoder import DecoderPool
from app.video.results import DecodingCancelled, FrameBatch, IndexSummary

BATCHES_IN_FLIGHT = 2  # one on the device, one that waits for it; the ring holds at least as many


def index_video(
    decoders: DecoderPool, task: IndexTask, reader: IndexReader, cancelled: Cancelled
) -> IndexSummary:
    """Index a video in this thread, and pass its segments on as they are found.

    Raises the video's fault, or WorkCancelled.
    """
    try:
        with decoders.index(
            task.video, segment_frames=task.segment_frames, sampling=task.sampling, cancelled=cancelled
        ) as index:
            reader.found_video(index.facts)
            for segment in index:
                reader.found_segments((segment,))
            return index.summary
    except DecodingCancelled as error:
        raise WorkCancelled from error


def run_segment(
    task: SegmentTask,
    *,
    decoders: DecoderPool,
    device: DeviceThread,
    cancelled: Cancelled,
    clock: PhaseClock,
    advance: Callable[[int], None],
) -> SegmentOutcome:
    """Decode and analyse `task`; its part is whole and durable when this returns.

    `advance` is called with the number of frames done since the last call. Raises the errors of the decoder
    and of the model; OSError if the part cannot be written.
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
        analysed = 0
        with closing(_detected(iter(session), device, task.job_id, clock)) as detected:
            for batch, found in detected:
                with clock.phase("encode"):
                    height, width = batch.frames.shape[1:3]
                    records = [
                        encode_record(
                            frame_id,
                            detections,
                            given_size=(width, height),
                            source_size=batch.source_size,
                            rules=task.rules,
                        )
                        for frame_id, detections in zip(batch.frame_ids.tolist(), found, strict=True)
                    ]
                    writer.append(records, batch.pts.tolist())
                    batch.release()
                analysed += len(found)
                advance(len(found))
        outcome = session.outcome
        advance(sum(gap.frame_count for gap in outcome.undecodable))
        writer.finish(
            {
                "plan": plan_of(task),
                "analysed": analysed,
                "corrupt": [[stretch.first, stretch.last] for stretch in outcome.corrupt],
                "doubtful": [[stretch.first, stretch.last] for stretch in outcome.doubtful],
                "undecodable": [[gap.first, gap.last, gap.reason] for gap in outcome.undecodable],
            }
        )
    part = store.read(task.segment.number)
    if part is None:
        raise FileNotFoundError("the part is gone")
    return outcome_of(part)


class PhaseClock:
    """Reports to an observer how many seconds a thread spent in each phase of a segment."""

    def __init__(self, observe: Callable[[str, float], None]) -> None:
        self._observe = observe

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._observe(name, time.perf_counter() - started)


def _detected(
    batches: Iterator[FrameBatch], device: DeviceThread, job_id: str, clock: PhaseClock
) -> Generator[tuple[FrameBatch, list[Detections]]]:
    """Yield (batch, its detections) in order, one batch behind: the device works while frames are decoded."""
    waiting: deque[tuple[FrameBatch, Future[list[Detections]]]] = deque()
    try:
        while True:
            with clock.phase("wait_for_frames"):
                batch = next(batches, None)
            if batch is None:
                break
            waiting.append((batch, device.submit(batch.frames, owner=job_id)))
            if len(waiting) == BATCHES_IN_FLIGHT:
                yield _result(*waiting.popleft(), clock)
        while waiting:
            yield _result(*waiting.popleft(), clock)
    finally:
        # After a fault the device may still read frames, whose memory is freed with the session.
        wait([future for _, future in waiting if not future.cancel()])


def _result(
    batch: FrameBatch, future: Future[list[Detections]], clock: PhaseClock
) -> tuple[FrameBatch, list[Detections]]:
    with clock.phase("wait_for_device"):
        return batch, future.result()
