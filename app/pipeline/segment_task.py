"""One segment of one video: decode, detect, write its part. The unit that runs anywhere and again."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.detection.detector import Detections
from app.pipeline.frame_records import RecordRules, encode_record
from app.storage.parts import Part, PartStore, PartWriter, TornPart
from app.video.protocol.facts import VideoFacts
from app.video.segments import FrameRange, Segment
from app.video.source import FrameBatch, FrameSource

Cancelled = Callable[[], bool]

BATCHES_IN_FLIGHT = 2  # one on the device, one waiting for it; the ring holds at least as many


class Device(Protocol):
    """Whoever runs the detector on batches, one after another."""

    def submit(self, frames: npt.NDArray[np.uint8], *, owner: str) -> Future[list[Detections]]:
        """Queue a batch, (n, height, width, 3) uint8 RGB, which stays valid until the future is done.

        `owner` is the job that it is for.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SegmentTask:
    """All that one segment's run depends on; picklable."""

    job_id: str
    video: Path
    facts: VideoFacts
    segment: Segment
    parts_folder: Path
    identity: str  # of everything that decides the part's bytes: model, options, settings, versions
    model: str
    frame_size: tuple[int, int]  # (width, height) to decode at
    batch_size: int
    rules: RecordRules


@dataclass(frozen=True, slots=True)
class SegmentOutcome:
    """A finished segment: its part, and what the part's footer says."""

    part: Part
    analysed: int
    corrupt: tuple[FrameRange, ...]
    doubtful: tuple[FrameRange, ...]
    undecodable: tuple[FrameRange, ...]

    @property
    def frames_settled(self) -> int:
        """Frames that are analysed, or known to be undecodable."""
        return self.analysed + sum(gap.frame_count for gap in self.undecodable)


def finished_segment(task: SegmentTask) -> SegmentOutcome | None:
    """Return what an earlier run of `task` left behind; None if that is absent, torn, or of another plan."""
    store = PartStore(task.parts_folder)
    try:
        part = store.read(task.segment.number)
    except TornPart:
        return None
    if part is None or part.footer["plan"] != _plan(task):
        return None
    return _outcome(part)


def run_segment(
    task: SegmentTask,
    *,
    decoders: FrameSource,
    device: Device,
    cancelled: Cancelled,
    clock: PhaseClock,
    advance: Callable[[int], None],
) -> SegmentOutcome:
    """Decode and analyse `task`; its part is whole and durable when this returns.

    `advance` is told of frames as they are dealt with. Raises what the decoder or the model say of the
    video; OSError if the disk does not take the part.
    """
    store = PartStore(task.parts_folder)
    with (
        decoders.decode(
            task.video,
            task.segment,
            frame_size=task.frame_size,
            batch_size=task.batch_size,
            cancelled=cancelled,
        ) as session,
        store.write(task.segment.number) as writer,
    ):
        analysed = 0
        with closing(_detected(iter(session), device, task.job_id, clock)) as detected:
            for batch, found in detected:
                with clock.phase("encode"):
                    _write_batch(writer, batch, found, task.rules)
                analysed += len(found)
                advance(len(found))
        outcome = session.outcome
        advance(sum(gap.frame_count for gap in outcome.undecodable))
        writer.finish(
            {
                "plan": _plan(task),
                "analysed": analysed,
                "corrupt": [[stretch.first, stretch.last] for stretch in outcome.corrupt],
                "doubtful": [[stretch.first, stretch.last] for stretch in outcome.doubtful],
                "undecodable": [[gap.first, gap.last, gap.reason] for gap in outcome.undecodable],
            }
        )
    part = store.read(task.segment.number)
    if part is None:
        raise FileNotFoundError("the part is gone")
    return _outcome(part)


class PhaseClock:
    """Tells an observer how many seconds a thread spent in which phase of a segment."""

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
    batches: Iterator[FrameBatch], device: Device, job_id: str, clock: PhaseClock
) -> Generator[tuple[FrameBatch, list[Detections]]]:
    """Yield (batch, its detections) in order, a batch ahead: the device works while frames are decoded."""
    waiting: deque[tuple[FrameBatch, Future[list[Detections]]]] = deque()
    try:
        while (batch := _next_batch(batches, clock)) is not None:
            waiting.append((batch, device.submit(batch.frames, owner=job_id)))
            if len(waiting) == BATCHES_IN_FLIGHT:
                yield _result(*waiting.popleft(), clock)
        while waiting:
            yield _result(*waiting.popleft(), clock)
    finally:
        # After a fault the device may still be reading frames, and their memory goes with the session.
        wait([future for _, future in waiting if not future.cancel()])


def _next_batch(batches: Iterator[FrameBatch], clock: PhaseClock) -> FrameBatch | None:
    with clock.phase("wait_for_frames"):
        return next(batches, None)


def _result(
    batch: FrameBatch, future: Future[list[Detections]], clock: PhaseClock
) -> tuple[FrameBatch, list[Detections]]:
    with clock.phase("wait_for_device"):
        return batch, future.result()


def _write_batch(writer: PartWriter, batch: FrameBatch, found: list[Detections], rules: RecordRules) -> None:
    height, width = batch.frames.shape[1:3]
    writer.append(
        [
            encode_record(
                frame_id,
                detections,
                given_size=(width, height),
                source_size=batch.source_size,
                rules=rules,
            )
            for frame_id, detections in zip(batch.frame_ids.tolist(), found, strict=True)
        ],
        batch.pts.tolist(),
    )
    batch.release()


def _plan(task: SegmentTask) -> list[Any]:
    return [task.identity, zlib.crc32(task.segment.frame_ids.tobytes())]


def _outcome(part: Part) -> SegmentOutcome:
    footer = part.footer
    return SegmentOutcome(
        part=part,
        analysed=footer["analysed"],
        corrupt=tuple(FrameRange(*stretch) for stretch in footer["corrupt"]),
        doubtful=tuple(FrameRange(*stretch) for stretch in footer["doubtful"]),
        undecodable=tuple(FrameRange(*gap) for gap in footer["undecodable"]),
    )
