"""One video to one document. Everything else in this package is a step of `detect_video`.

    index ──▶ segments ──▶ runner: decode → detect → part ──▶ parts in order ──▶ document

The index runs ahead in a thread of its own; segments are handed to the runner a few at a time; finished
parts are taken in order. A part that an earlier run left behind is taken as it is.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from app.detection.detector import Detector
from app.detection.resize import fit_within
from app.errors import DamagedVideo, InvalidOption, NothingDecodable
from app.pipeline.completeness import FrameTally, completeness_report
from app.pipeline.document import DocumentDigest, write_document, write_pts
from app.pipeline.frame_records import RecordRules
from app.pipeline.frame_times import pts_seconds
from app.pipeline.options import DetectionOptions, OnDamage
from app.pipeline.report import (
    Completeness,
    DetectionReport,
    DocumentReport,
    ModelReport,
    StreamReport,
    VideoReport,
)
from app.pipeline.runner import Runner
from app.pipeline.segment_task import Cancelled, SegmentOutcome, SegmentTask, finished_segment
from app.storage.parts import Part, PartStore
from app.video.decoder import DecoderPool, DecodingCancelled, IndexSession
from app.video.facts import IndexSummary, OtherStream, VideoFacts
from app.video.sampling import Sampling
from app.video.segments import Segment

SEGMENTS_AHEAD = 2  # submitted beyond the runner's slots, so that no slot waits for the job's thread


class DetectionCancelled(Exception):
    """The caller asked for the end of it. Finished parts stay."""


@dataclass(frozen=True, slots=True)
class DetectionRequest:
    """What is to be done for one job."""

    job_id: str
    video: Path
    parts_folder: Path
    document: Path  # where the answer goes
    pts: Path  # where the time stamps of its frames go
    options: DetectionOptions
    segment_frames: int
    runtime: str  # what computes the boxes, beside the model: parts of another one are not taken
    is_urgent: bool = False  # somebody waits for it: its segments come first


@dataclass(slots=True)
class DetectionProgress:
    """How far a video is. Totals are None until its index is whole."""

    frames_done: int = 0  # analysed: they are in the document
    frames_missing: int = 0  # there is nothing of them to analyse
    frames_resumed: int = 0  # of both, what an earlier run had settled
    frames_total: int | None = None  # of both
    segments_done: int = 0
    segments_total: int | None = None


Observe = Callable[[DetectionProgress, DetectionReport], None]


def detect_video(
    request: DetectionRequest,
    *,
    decoders: DecoderPool,
    detector: Detector,
    runner: Runner,
    observe: Observe,
    cancelled: Cancelled,
) -> DetectionReport:
    """Write the document of `request` and its time stamps; both are whole and durable when this returns.

    The same video, model, options and runtime give the same bytes, whatever was interrupted before.
    `observe` is called in this thread once the video is open and after every segment; the progress that it is
    given goes on changing. Raises DetectionCancelled once `cancelled()`;
    a FrameboxError that says why the video or the model cannot be used; OSError if the disk is full.
    """
    try:
        return _Run(request, decoders, detector, runner, observe, cancelled).execute()
    except DecodingCancelled as error:
        raise DetectionCancelled from error
    finally:
        decoders.forget(request.video)


class _Run:
    """The state of one call of `detect_video`."""

    def __init__(
        self,
        request: DetectionRequest,
        decoders: DecoderPool,
        detector: Detector,
        runner: Runner,
        observe: Observe,
        cancelled: Cancelled,
    ) -> None:
        self._request = request
        self._decoders = decoders
        self._detector = detector
        self._runner = runner
        self._observe = observe
        self._is_cancelled = cancelled
        self._abort = threading.Event()
        self._progress = DetectionProgress()
        self._tally = FrameTally()
        self._digest = DocumentDigest()
        self._parts: list[Part] = []  # what makes the document, in order
        self._report = DetectionReport(
            model=ModelReport(
                name=detector.name,
                sha256=detector.fingerprint,
                device=detector.device.partition(":")[0],
                labels=tuple(detector.class_names),
            )
        )

    def execute(self) -> DetectionReport:
        PartStore(self._request.parts_folder).create()
        with self._feed() as feed:
            facts = feed.facts()
            self._report = DetectionReport(model=self._report.model, video=_video_report(facts))
            self._observe(self._progress, self._report)
            for outcome in self._run_segments(feed, facts):
                self._take(outcome)
            summary = feed.summary()
        self._progress.frames_missing += summary.lost.total
        video, completeness = _video_report(facts, summary), completeness_report(self._tally, summary)
        self._report = DetectionReport(model=self._report.model, video=video, completeness=completeness)
        self._check_outcome(video, completeness)
        write_pts(self._parts, self._request.pts)
        document = write_document(self._parts, self._request.document, self._digest)
        self._report = DetectionReport(
            model=self._report.model,
            video=video,
            completeness=completeness,
            document=DocumentReport(bytes=document.size_bytes, sha256=document.sha256),
        )
        self._observe(self._progress, self._report)
        return self._report

    def _must_stop(self) -> bool:
        return self._abort.is_set() or self._is_cancelled()

    def _open_index(self) -> IndexSession:
        return self._decoders.index(
            self._request.video,
            segment_frames=self._request.segment_frames,
            sampling=_sampling(self._request.options),
            cancelled=self._must_stop,
        )

    @contextmanager
    def _feed(self) -> Iterator[_SegmentFeed]:
        name = f"index-{self._request.job_id[:8]}"
        feed = _SegmentFeed(self._open_index, self._progress, name=name)
        feed.start()
        try:
            yield feed
        except BaseException:
            self._abort.set()
            raise
        finally:
            feed.close()

    # ---- segments

    def _run_segments(self, feed: _SegmentFeed, facts: VideoFacts) -> Iterator[SegmentOutcome]:
        """Yield the outcomes in order, `SEGMENTS_AHEAD` segments ahead of what the runner can take."""
        running: deque[Future[SegmentOutcome]] = deque()
        task_for = self._task_factory(facts)
        try:
            for segment in feed:
                running.append(self._submit(task_for(segment=segment)))
                if len(running) >= self._runner.slots + SEGMENTS_AHEAD:
                    yield self._await(running.popleft())
            while running:
                yield self._await(running.popleft())
        except BaseException:
            self._abort.set()
            raise
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def _submit(self, task: SegmentTask) -> Future[SegmentOutcome]:
        outcome = finished_segment(task)
        if outcome is None:
            return self._runner.submit(task, self._must_stop, is_urgent=self._request.is_urgent)
        self._progress.frames_resumed += outcome.frames_settled
        future: Future[SegmentOutcome] = Future()
        future.set_result(outcome)
        return future

    def _await(self, future: Future[SegmentOutcome]) -> SegmentOutcome:
        try:
            outcome = future.result()
        except CancelledError as error:
            raise DetectionCancelled from error
        except Exception as error:
            if self._is_cancelled():
                raise DetectionCancelled from error
            raise
        finally:
            del future  # else its error holds this frame, and this frame the error, with a decoder's memory
        if self._is_cancelled():
            raise DetectionCancelled
        return outcome

    def _task_factory(self, facts: VideoFacts) -> Callable[..., SegmentTask]:
        options = self._request.options
        largest_side = options.max_side or max(facts.width, facts.height)
        frame_size = self._detector.frame_size(*fit_within(facts.width, facts.height, largest_side))
        min_score = options.min_score
        return partial(
            SegmentTask,
            job_id=self._request.job_id,
            video=self._request.video,
            facts=facts,
            parts_folder=self._request.parts_folder,
            identity=self._identity(frame_size),
            model=self._detector.name,
            frame_size=frame_size,
            batch_size=self._detector.batch_size,
            rules=RecordRules(
                class_names=tuple(self._detector.class_names),
                min_score=self._detector.default_min_score if min_score is None else min_score,
                labels=None if options.labels is None else frozenset(options.labels),
            ),
        )

    def _identity(self, frame_size: tuple[int, int]) -> str:
        decides = {
            "model": [self._detector.fingerprint, self._report.model.device, self._request.runtime],
            "options": self._request.options.model_dump(mode="json", exclude={"model"}),
            "segment_frames": self._request.segment_frames,
            "frame_size": frame_size,
            "batch_size": self._decoders.effective_batch_size(frame_size, self._detector.batch_size),
            "decoder": self._decoders.identity,
        }
        return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()

    # ---- the account

    def _take(self, outcome: SegmentOutcome) -> None:
        self._parts.append(outcome.part)
        self._digest.add(outcome.part)
        self._tally.add(
            analysed=outcome.analysed,
            undecodable=outcome.undecodable,
            corrupt=outcome.corrupt,
            doubtful=outcome.doubtful,
        )
        self._progress.frames_done = self._tally.analysed
        self._progress.frames_missing = self._tally.undecodable.frames
        self._progress.segments_done += 1
        self._observe(self._progress, self._report)

    def _check_outcome(self, video: VideoReport, completeness: Completeness) -> None:
        if not completeness.frames_wanted:
            raise InvalidOption(
                "No frame of the video lies between start and end.",
                {"parameter": "start", "allowed": f"below {video.duration_seconds} seconds"},
            )
        if not self._tally.analysed:
            raise NothingDecodable(
                "No frame of the video could be decoded.", self._failure_extensions(completeness)
            )
        if self._tally.is_noise:
            raise NothingDecodable(
                "Nearly all pictures of the video are damaged: nothing found in them can be trusted.",
                self._failure_extensions(completeness),
            )
        if self._request.options.on_damage is OnDamage.FAIL and not completeness.complete:
            raise DamagedVideo(
                "The video is damaged, and on_damage=fail was asked for.",
                self._failure_extensions(completeness),
            )

    def _failure_extensions(self, completeness: Completeness) -> dict[str, Any]:
        self._observe(self._progress, self._report)
        names = {"frames_indexed", "frames_analysed", "frames_undecodable", "frames_corrupt"}
        return completeness.model_dump(include=names)


class _SegmentFeed:
    """The segments of a video's index, read by a thread of its own so that totals are known early.

    Holds a time stamp, a place and a flag for every frame of the video, 13 bytes; nothing else grows. The
    index's decoder child is free for other work as soon as the index is whole.
    """

    def __init__(
        self, open_index: Callable[[], IndexSession], progress: DetectionProgress, *, name: str
    ) -> None:
        self._open_index = open_index
        self._progress = progress  # gets its totals as soon as they are known
        self._segments: deque[Segment] = deque()
        self._changed = threading.Condition()
        self._facts: VideoFacts | None = None
        self._summary: IndexSummary | None = None
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name=name)
        self.segment_count = 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Wait for the thread, and let go of a fault, whose traceback holds the decoder's memory and this."""
        self._thread.join()
        self._fault = None

    def facts(self) -> VideoFacts:
        """Wait for the container to be read. Raises what the index says of the video."""
        with self._changed:
            self._changed.wait_for(lambda: self._facts or self._fault)
            if self._facts is None:
                raise self._fault or RuntimeError("the index ended without facts")
            return self._facts

    def summary(self) -> IndexSummary:
        """Wait for the index to be whole. Raises what it says of the video."""
        with self._changed:
            self._changed.wait_for(lambda: self._summary or self._fault)
            if self._summary is None:
                raise self._fault or RuntimeError("the index ended without a summary")
            return self._summary

    def __iter__(self) -> Iterator[Segment]:
        while (segment := self._next()) is not None:
            yield segment

    def _next(self) -> Segment | None:
        with self._changed:
            self._changed.wait_for(lambda: self._segments or self._summary or self._fault)
            if self._segments:
                return self._segments.popleft()
            if self._fault is not None:
                raise self._fault
            return None

    # ---- the feed's thread

    def _read(self) -> None:
        try:
            with self._open_index() as index:
                self._tell(facts=index.facts)
                for segment in index:
                    self._add(segment)
                summary = index.summary
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: its reader raises it
            self._tell(fault=error)
        else:
            self._progress.frames_total = summary.frames_wanted
            self._progress.segments_total = self.segment_count
            self._tell(summary=summary)

    def _add(self, segment: Segment) -> None:
        if not segment.wanted_count:
            return  # sampling wants none of its frames: not decoded at all
        with self._changed:
            self._segments.append(segment)
            self.segment_count += 1
            self._changed.notify_all()

    def _tell(
        self,
        *,
        facts: VideoFacts | None = None,
        summary: IndexSummary | None = None,
        fault: BaseException | None = None,
    ) -> None:
        with self._changed:
            self._facts = self._facts or facts
            self._summary = summary
            self._fault = fault
            self._changed.notify_all()


def _sampling(options: DetectionOptions) -> Sampling:
    return Sampling(
        stride=options.stride, fps=options.fps, start_seconds=options.start, end_seconds=options.end
    )


def _video_report(facts: VideoFacts, summary: IndexSummary | None = None) -> VideoReport:
    """Return what the container tells, corrected by what the whole index has shown, once that is known."""
    start_seconds, duration_seconds = None, facts.duration_seconds
    if summary is not None and summary.start_pts is not None:
        start_seconds = pts_seconds(summary.start_pts, facts.time_base)
    if summary is not None and summary.duration_seconds is not None:
        duration_seconds = round(summary.duration_seconds, 6)
    return VideoReport(
        container=facts.container,
        codec=facts.codec,
        pixel_format=facts.pixel_format,
        width=facts.width,
        height=facts.height,
        rotation_degrees=facts.rotation_degrees,
        mirrored=facts.mirrored,
        frame_rate=None if facts.frame_rate is None else str(facts.frame_rate),
        sample_aspect_ratio=str(facts.sample_aspect_ratio),
        time_base=f"{facts.time_base.numerator}/{facts.time_base.denominator}",
        start_seconds=start_seconds,
        duration_seconds=duration_seconds,
        stream=facts.stream_index,
        other_streams=tuple(map(_stream_report, facts.other_streams)),
        variable_frame_rate=None if summary is None else summary.variable_frame_rate,
    )


def _stream_report(stream: OtherStream) -> StreamReport:
    has_size = stream.width > 0 and stream.height > 0
    return StreamReport(
        index=stream.index,
        kind=stream.kind,
        codec=stream.codec or None,
        width=stream.width if has_size else None,
        height=stream.height if has_size else None,
        language=stream.language or None,
        default=stream.is_default,
        picture=stream.is_picture,
    )
