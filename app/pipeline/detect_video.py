"""One video to one document. Everything else in this package is a step of `detect_video`.

    index ──▶ segments ──▶ runner: decode → detect → part ──▶ parts in order ──▶ document

The runner indexes the video ahead of the segments; segments are submitted to it a few at a time; finished
parts are taken in order. A part that an earlier run left behind is reused.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import orjson

from app.detection.model_facts import ModelFacts
from app.errors import DamagedVideo, FrameboxError, InvalidOption, NothingDecodable
from app.pipeline.completeness import FrameTally, completeness_report
from app.pipeline.document import DocumentDigest, pts_seconds, write_document, write_pts
from app.pipeline.options import DetectionOptions, OnDamage
from app.pipeline.report import (
    Completeness,
    DetectionReport,
    DocumentReport,
    ModelReport,
    StreamReport,
    VideoReport,
)
from app.pipeline.runner import IndexItem, IndexTask, Runner
from app.pipeline.segment_task import RecordRules, SegmentOutcome, SegmentTask, finished_segment
from app.storage.parts import Part, PartStore
from app.video.protocol.facts import VideoFacts
from app.video.results import Cancelled, IndexSummary, WorkCancelled
from app.video.sampling import Sampling
from app.video.segments import Segment

LABELS_LISTED = 200  # in an error
SEGMENTS_AHEAD = 2  # submitted beyond the runner's slots, so that no slot waits for the job's thread


@dataclass(frozen=True, slots=True)
class DetectionRequest:
    """The work of one job."""

    job_id: str
    video: Path
    parts_folder: Path
    document: Path  # where the answer goes
    pts: Path  # where the time stamps of its frames go
    options: DetectionOptions
    segment_frames: int
    is_urgent: bool = False  # a client waits for it: its segments come first


@dataclass(slots=True)
class DetectionProgress:
    """How far a video is. Totals are None until its index is complete."""

    frames_done: int = 0  # analysed: they are in the document
    frames_missing: int = 0  # lost, or they cannot be decoded
    frames_resumed: int = 0  # of both, those of parts that an earlier run left behind
    frames_total: int | None = None  # of both
    segments_done: int = 0
    segments_total: int | None = None


Observe = Callable[[DetectionProgress, DetectionReport], None]


def detect_video(
    request: DetectionRequest,
    *,
    model: ModelFacts,
    runner: Runner,
    observe: Observe,
    cancelled: Cancelled,
) -> DetectionReport:
    """Write the document of `request` and its time stamps; both are whole and durable when this returns.

    The same video, model, options and runtime give the same bytes, whatever was interrupted before.
    `observe` is called in this thread once the video is open and after every segment; its progress argument
    goes on changing. Raises WorkCancelled once `cancelled()`; a FrameboxError that says why the video or the
    model cannot be used; OSError if the disk is full.
    """
    model_report = ModelReport(name=model.name, sha256=model.sha256, device=model.device, labels=model.labels)
    try:
        return _Run(request, model, runner, observe, cancelled, DetectionReport(model=model_report)).execute()
    except CancelledError as error:
        raise WorkCancelled from error
    finally:
        runner.forget(request.video)


@dataclass(slots=True, eq=False)
class _Run:
    """The state of one call of `detect_video`."""

    request: DetectionRequest
    model: ModelFacts
    runner: Runner
    observe: Observe
    is_cancelled: Cancelled
    report: DetectionReport
    progress: DetectionProgress = field(default_factory=DetectionProgress)
    tally: FrameTally = field(default_factory=FrameTally)
    is_aborted: bool = False  # by a fault: the runner need not finish its work

    def execute(self) -> DetectionReport:
        unknown = [label for label in self.request.options.labels or () if label not in self.model.labels]
        if unknown:  # the model may have been loaded after the request was checked
            raise InvalidOption(
                f"labels: the model finds no {unknown[0]!r}.",
                {"parameter": "labels", "allowed": list(self.model.labels[:LABELS_LISTED])},
            )
        PartStore(self.request.parts_folder).create()
        parts: list[Part] = []  # what makes the document, in order
        digest = DocumentDigest()
        with self._feed() as feed:
            facts = feed.facts()
            self._update(video=_video_report(facts))
            for outcome in self._run_segments(feed, facts):
                parts.append(outcome.part)
                digest.add(outcome.part)
                self.tally.add(outcome)
                self.progress.frames_done = self.tally.analysed
                self.progress.frames_missing = self.tally.undecodable.frames
                self.progress.segments_done += 1
                self._update()
            summary = feed.indexing.result()
        self.progress.frames_missing += summary.lost.frames
        video, completeness = _video_report(facts, summary), completeness_report(self.tally, summary)
        self._check_outcome(video, completeness)
        write_pts(parts, self.request.pts)
        document = write_document(parts, self.request.document, digest)
        self._update(video=video, completeness=completeness, document=document)
        return self.report

    def _update(self, **members: VideoReport | Completeness | DocumentReport) -> None:
        """Add the members to the report and pass it to the observer."""
        self.report = self.report.model_copy(update=members)
        self.observe(self.progress, self.report)

    def _must_stop(self) -> bool:
        return self.is_aborted or self.is_cancelled()

    @contextmanager
    def _feed(self) -> Iterator[_SegmentFeed]:
        request, options = self.request, self.request.options
        sampling = Sampling(
            stride=options.stride, fps=options.fps, start_seconds=options.start, end_seconds=options.end
        )
        task = IndexTask(request.job_id, request.video, request.segment_frames, sampling)
        feed = _SegmentFeed(self.progress)
        feed.indexing = self.runner.index(task, feed.add, self._must_stop)
        feed.indexing.add_done_callback(feed.end)
        try:
            yield feed
        except BaseException:
            self.is_aborted = True
            raise
        finally:
            wait([feed.indexing])
            del feed.indexing  # the traceback of its fault refers to the feed

    # ---- segments

    def _run_segments(self, feed: _SegmentFeed, facts: VideoFacts) -> Iterator[SegmentOutcome]:
        """Yield the outcomes in order, `SEGMENTS_AHEAD` segments ahead of the runner's slots."""
        running: deque[Future[SegmentOutcome]] = deque()
        task_for = self._task_factory(facts)
        try:
            for segment in feed:
                task = task_for(segment=segment)
                outcome = finished_segment(task)
                if outcome is None:
                    is_urgent = self.request.is_urgent
                    running.append(self.runner.submit(task, self._must_stop, is_urgent=is_urgent))
                else:
                    self.progress.frames_resumed += outcome.frames_settled
                    finished: Future[SegmentOutcome] = Future()
                    finished.set_result(outcome)
                    running.append(finished)
                if len(running) >= self.runner.slots + SEGMENTS_AHEAD:
                    yield self._await(running.popleft())
            while running:
                yield self._await(running.popleft())
        except BaseException:
            self.is_aborted = True
            raise
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def _await(self, future: Future[SegmentOutcome]) -> SegmentOutcome:
        try:
            outcome = future.result()
        except Exception as error:
            if self.is_cancelled():
                raise WorkCancelled from error
            raise
        finally:
            del future  # else its error holds this frame, and this frame the error, with a decoder's memory
        if self.is_cancelled():
            raise WorkCancelled
        return outcome

    def _task_factory(self, facts: VideoFacts) -> Callable[..., SegmentTask]:
        """Return SegmentTask with every argument but `segment`."""
        options, model = self.request.options, self.model
        min_score = options.min_score
        # The size of the frames is not included: the model, the options and the video decide it.
        identity = {
            "model": model.identity,
            "options": options.model_dump(mode="json", exclude={"model"}),
            "segment_frames": self.request.segment_frames,
            "decoder": self.runner.decoder_identity,
        }
        return partial(
            SegmentTask,
            job_id=self.request.job_id,
            video=self.request.video,
            facts=facts,
            parts_folder=self.request.parts_folder,
            identity=hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest(),
            model=model.name,
            model_identity=model.identity,
            max_side=options.max_side,
            rules=RecordRules(
                class_names=model.labels,
                min_score=model.default_min_score if min_score is None else min_score,
                labels=None if options.labels is None else frozenset(options.labels),
            ),
        )

    # ---- the result

    def _check_outcome(self, video: VideoReport, completeness: Completeness) -> None:
        if not completeness.frames_wanted:
            raise InvalidOption(
                "No frame of the video lies between start and end.",
                {"parameter": "start", "allowed": f"below {video.duration_seconds} seconds"},
            )
        kind: type[FrameboxError]
        if not self.tally.analysed:
            kind, detail = NothingDecodable, "No frame of the video could be decoded."
        elif self.tally.is_noise:
            kind = NothingDecodable
            detail = "Nearly all pictures of the video are damaged: nothing found in them can be trusted."
        elif self.request.options.on_damage is OnDamage.FAIL and not completeness.complete:
            kind, detail = DamagedVideo, "The video is damaged, and on_damage=fail was asked for."
        else:
            return
        self._update(video=video, completeness=completeness)
        names = {"frames_indexed", "frames_analysed", "frames_undecodable", "frames_corrupt"}
        raise kind(detail, completeness.model_dump(include=names))


class _SegmentFeed:
    """The segments of a video's index, which runs ahead so that totals are known early.

    Holds a time stamp, a position and a flag for every frame of the video, 13 bytes; nothing else grows.
    """

    indexing: Future[IndexSummary]  # ends when all segments are here

    def __init__(self, progress: DetectionProgress) -> None:
        self._progress = progress  # gets its totals as soon as they are known
        self._facts: Future[VideoFacts] = Future()
        self._segments: SimpleQueue[Segment | None] = SimpleQueue()  # None: the index has ended
        self._segment_count = 0

    def facts(self) -> VideoFacts:
        """Wait until the container is read. Raises the fault of the index."""
        # No name for this list: a raised fault holds this frame, and its future would then hold itself.
        wait((self._facts, cast("Future[Any]", self.indexing)), return_when=FIRST_COMPLETED)
        if not self._facts.done():
            self.indexing.result()
        return self._facts.result(timeout=0)

    def __iter__(self) -> Iterator[Segment]:
        """Yield the segments as they are found, until the index ends. Raises its fault."""
        while (segment := self._segments.get()) is not None:
            yield segment
        self.indexing.result()

    # ---- called by the runner

    def add(self, item: IndexItem) -> None:
        if isinstance(item, VideoFacts):
            self._facts.set_result(item)
        elif item.wanted_count:  # otherwise it is not decoded at all
            self._segment_count += 1
            self._segments.put(item)

    def end(self, indexing: Future[IndexSummary]) -> None:
        if not indexing.cancelled() and indexing.exception() is None:
            self._progress.frames_total = indexing.result().frames_wanted
            self._progress.segments_total = self._segment_count
        self._segments.put(None)


def _video_report(facts: VideoFacts, summary: IndexSummary | None = None) -> VideoReport:
    """Describe the video as its container does, corrected by the index once that is complete."""
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
        other_streams=tuple(
            StreamReport(
                index=stream.index,
                kind=stream.kind,
                codec=stream.codec or None,
                width=stream.width if stream.width > 0 and stream.height > 0 else None,
                height=stream.height if stream.width > 0 and stream.height > 0 else None,
                language=stream.language or None,
                default=stream.is_default,
                picture=stream.is_picture,
            )
            for stream in facts.other_streams
        ),
        variable_frame_rate=None if summary is None else summary.variable_frame_rate,
    )
