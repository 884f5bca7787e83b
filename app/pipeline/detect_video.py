"""One video to one document. Everything else in this package is a step of `detect_video`.

    index ──▶ segments ──▶ runner: decode → detect → part ──▶ parts in order ──▶ document

The runner indexes the video ahead of the segments; segments are submitted to it a few at a time; finished
parts are taken in order. A part that an earlier run left behind is reused.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from app.detection.model_facts import ModelFacts
from app.errors import DamagedVideo, FrameboxError, InvalidOption, NothingDecodable
from app.pipeline.completeness import FrameTally, completeness_report
from app.pipeline.document import DocumentDigest, write_document, write_pts
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
from app.pipeline.runner import Cancelled, IndexTask, Runner, WorkCancelled
from app.pipeline.segment_task import RecordRules, SegmentOutcome, SegmentTask, finished_segment
from app.storage.parts import Part, PartStore
from app.video.protocol.facts import VideoFacts
from app.video.results import IndexSummary
from app.video.sampling import Sampling
from app.video.segments import Segment

LABELS_LISTED = 200  # in an error
SEGMENTS_AHEAD = 2  # submitted beyond the runner's slots, so that no slot waits for the job's thread


class DetectionCancelled(Exception):
    """The caller cancelled the detection. Finished parts stay."""


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
    goes on changing. Raises DetectionCancelled once `cancelled()`; a FrameboxError that says why the video or
    the model cannot be used; OSError if the disk is full.
    """
    try:
        return _Run(request, model, runner, observe, cancelled).execute()
    except WorkCancelled as error:
        raise DetectionCancelled from error
    finally:
        runner.forget(request.video)


class _Run:
    """The state of one call of `detect_video`."""

    def __init__(
        self,
        request: DetectionRequest,
        model: ModelFacts,
        runner: Runner,
        observe: Observe,
        cancelled: Cancelled,
    ) -> None:
        self._request = request
        self._model = model
        self._runner = runner
        self._observe = observe
        self._is_cancelled = cancelled
        self._abort = threading.Event()
        self._progress = DetectionProgress()
        self._tally = FrameTally()
        self._digest = DocumentDigest()
        self._parts: list[Part] = []  # what makes the document, in order
        self._report = DetectionReport(
            model=ModelReport(name=model.name, sha256=model.sha256, device=model.device, labels=model.labels)
        )

    def execute(self) -> DetectionReport:
        unknown = [label for label in self._request.options.labels or () if label not in self._model.labels]
        if unknown:  # the model may have been loaded after the request was checked
            raise InvalidOption(
                f"labels: the model finds no {unknown[0]!r}.",
                {"parameter": "labels", "allowed": list(self._model.labels[:LABELS_LISTED])},
            )
        PartStore(self._request.parts_folder).create()
        with self._feed() as feed:
            facts = feed.facts()
            self._report = DetectionReport(model=self._report.model, video=_video_report(facts))
            self._observe(self._progress, self._report)
            for outcome in self._run_segments(feed, facts):
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

    @contextmanager
    def _feed(self) -> Iterator[_SegmentFeed]:
        request, options = self._request, self._request.options
        sampling = Sampling(
            stride=options.stride, fps=options.fps, start_seconds=options.start, end_seconds=options.end
        )
        feed = _SegmentFeed(self._progress)
        indexing = self._runner.index(
            IndexTask(request.job_id, request.video, request.segment_frames, sampling), feed, self._must_stop
        )
        indexing.add_done_callback(feed.end)
        try:
            yield feed
        except BaseException:
            self._abort.set()
            raise
        finally:
            wait([indexing])
            feed.close()

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
                    is_urgent = self._request.is_urgent
                    running.append(self._runner.submit(task, self._must_stop, is_urgent=is_urgent))
                else:
                    self._progress.frames_resumed += outcome.frames_settled
                    finished: Future[SegmentOutcome] = Future()
                    finished.set_result(outcome)
                    running.append(finished)
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
        """Return SegmentTask with every argument but `segment`."""
        options, model = self._request.options, self._model
        min_score = options.min_score
        # The size of the frames is not included: the model, the options and the video decide it.
        identity = {
            "model": model.identity,
            "options": options.model_dump(mode="json", exclude={"model"}),
            "segment_frames": self._request.segment_frames,
            "decoder": self._runner.decoder_identity,
        }
        return partial(
            SegmentTask,
            job_id=self._request.job_id,
            video=self._request.video,
            facts=facts,
            parts_folder=self._request.parts_folder,
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
        if not self._tally.analysed:
            kind, detail = NothingDecodable, "No frame of the video could be decoded."
        elif self._tally.is_noise:
            kind = NothingDecodable
            detail = "Nearly all pictures of the video are damaged: nothing found in them can be trusted."
        elif self._request.options.on_damage is OnDamage.FAIL and not completeness.complete:
            kind, detail = DamagedVideo, "The video is damaged, and on_damage=fail was asked for."
        else:
            return
        self._observe(self._progress, self._report)
        names = {"frames_indexed", "frames_analysed", "frames_undecodable", "frames_corrupt"}
        raise kind(detail, completeness.model_dump(include=names))


class _SegmentFeed:
    """The segments of a video's index, which runs ahead so that totals are known early. Fulfils IndexReader.

    Holds a time stamp, a position and a flag for every frame of the video, 13 bytes; nothing else grows.
    """

    def __init__(self, progress: DetectionProgress) -> None:
        self._progress = progress  # gets its totals as soon as they are known
        self._segments: deque[Segment] = deque()
        self._changed = threading.Condition()
        self._facts: VideoFacts | None = None
        self._summary: IndexSummary | None = None
        self._fault: BaseException | None = None
        self._segment_count = 0

    def close(self) -> None:
        """Drop the fault, whose traceback refers to this object."""
        self._fault = None

    def facts(self) -> VideoFacts:
        """Wait until the container is read. Raises the fault of the index."""
        with self._changed:
            self._changed.wait_for(lambda: self._facts or self._fault)
            if self._facts is None:
                raise self._fault or RuntimeError("the index ended without facts")
            return self._facts

    def summary(self) -> IndexSummary:
        """Wait until the index is complete. Raises its fault."""
        with self._changed:
            self._changed.wait_for(lambda: self._summary or self._fault)
            if self._summary is None:
                raise self._fault or RuntimeError("the index ended without a summary")
            return self._summary

    def __iter__(self) -> Iterator[Segment]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._segments or self._summary or self._fault)
                if not self._segments:
                    if self._fault is not None:
                        raise self._fault
                    return
                segment = self._segments.popleft()
            yield segment

    # ---- called by the runner

    def found_video(self, facts: VideoFacts) -> None:
        with self._changed:
            self._facts = facts
            self._changed.notify_all()

    def found_segments(self, segments: Sequence[Segment]) -> None:
        # Segments without a sampled frame are not decoded at all.
        wanted = [segment for segment in segments if segment.wanted_count]
        with self._changed:
            self._segments += wanted
            self._segment_count += len(wanted)
            self._changed.notify_all()

    def end(self, indexing: Future[IndexSummary]) -> None:
        """Take the summary of an index that has ended, or its fault."""
        with self._changed:
            if indexing.cancelled():
                self._fault = WorkCancelled()
            elif (fault := indexing.exception()) is not None:
                self._fault = fault
            else:
                self._summary = indexing.result()
                self._progress.frames_total = self._summary.frames_wanted
                self._progress.segments_total = self._segment_count
            self._changed.notify_all()


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
