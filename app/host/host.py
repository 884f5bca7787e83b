"""A host: the process that holds the models of one device, owns decoder children, and makes parts.

It follows the engine's commands, which come over a socket, and ends when the engine does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import structlog

from app.detection.detector import DeviceLost
from app.detection.model_facts import NoRoomForModel, UntriedModel
from app.detection.model_files import is_of_the_machine
from app.detection.model_pool import ModelPool, WornOut
from app.errors import FrameboxError, ModelFault
from app.failpoints import fail_point
from app.host.messages import (
    Advanced,
    Cancel,
    Failed,
    ForgetVideo,
    Heartbeat,
    IndexDone,
    IndexFound,
    IndexVideo,
    LendRoom,
    ModelInUse,
    Reason,
    ReleaseModel,
    RoomLent,
    RunSegment,
    SegmentDone,
    Stop,
    TakeRoomBack,
    UseModel,
)
from app.pipeline.run_segment import index_video, run_segment
from app.pipeline.runner import IndexItem
from app.video.decoder import DecoderPool
from app.video.results import Cancelled, WorkCancelled

HEARTBEAT_SECONDS = 1.0
_MOST_THREADS = 512  # more than an engine ever has running

_log = structlog.get_logger(__name__)


class Host:
    """Serves one engine over `channel`. The caller closes the arguments."""

    def __init__(
        self,
        channel: Connection,
        models: ModelPool,
        decoders: DecoderPool,
        limit_memory: Callable[[int | None], None],
    ) -> None:
        """`limit_memory` limits the host memory of this process, in bytes; None: to all that it may take."""
        self._channel = channel
        self._models = models
        self._decoders = decoders
        self._limit_memory = limit_memory
        self._sending = threading.Lock()
        self._threads = ThreadPoolExecutor(_MOST_THREADS, "work")
        self._loader = ThreadPoolExecutor(1, "load")  # models load one at a time, in the order of requests
        self._cancelled: dict[int, threading.Event] = {}  # by ticket, of running work
        self._uses: dict[str, ExitStack] = {}  # by model, of those that the engine wants kept

    def serve(self) -> None:
        """Follow commands until the engine sends Stop or is gone."""
        next_heartbeat = 0.0
        try:
            while True:
                if time.monotonic() >= next_heartbeat:
                    self._send(self._heartbeat())
                    next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
                if self._channel.poll(max(0.0, next_heartbeat - time.monotonic())):
                    command = self._channel.recv()
                    if isinstance(command, Stop):
                        return
                    self._obey(command)
        except (EOFError, OSError):
            _log.info("the engine is gone")

    def _obey(self, command: object) -> None:
        match command:
            case UseModel():
                threads = self._threads if command.model in self._models.loaded() else self._loader
                self._start(threads, command.ticket, partial(self._use, command))
            case ReleaseModel():
                self._uses.pop(command.model).close()
            case RunSegment():
                self._start(self._threads, command.ticket, partial(self._run_segment, command))
            case IndexVideo():
                self._start(self._threads, command.ticket, partial(self._index, command))
            case Cancel():
                if command.ticket in self._cancelled:
                    self._cancelled[command.ticket].set()
            case LendRoom():
                self._start(self._loader, command.ticket, partial(self._lend_room, command))
            case TakeRoomBack():
                self._loader.submit(self._take_room_back)
            case ForgetVideo():
                self._threads.submit(self._decoders.forget, command.video)  # it waits for decoders to end
            case _:
                raise TypeError(f"the engine sent {type(command).__name__}")

    def _start(self, threads: ThreadPoolExecutor, ticket: int, work: Callable[[Cancelled], object]) -> None:
        """Run `work` in one of `threads`, and send what it returns or raises."""
        cancelled = self._cancelled[ticket] = threading.Event()

        def run() -> None:
            try:
                answer = work(cancelled.is_set)
            except BaseException as error:  # noqa: BLE001 - the thread's boundary: the engine gets the error
                answer = failure(ticket, error)
            del self._cancelled[ticket]
            self._send(answer)

        threads.submit(run)

    def _use(self, command: UseModel, _: Cancelled) -> ModelInUse:
        use = ExitStack()
        try:
            use.enter_context(self._models.use(command.model, command.verdict))
            self._uses[command.model] = use
            return ModelInUse(command.ticket, self._models.facts_of(command.model))
        finally:
            self._send(self._heartbeat())  # before the answer: what is loaded and crowded has changed

    def _lend_room(self, command: LendRoom, _: Cancelled) -> RoomLent:
        kept = self._models.lend_room()
        self._limit_memory(kept.host_bytes)
        self._send(self._heartbeat())
        return RoomLent(command.ticket, kept.host_bytes, kept.device_bytes)

    def _take_room_back(self) -> None:
        self._models.take_room_back()
        try:
            self._limit_memory(None)
        except (OSError, ValueError):
            _log.exception("the limit to this host's memory could not be raised")
        self._send(self._heartbeat())

    def _run_segment(self, command: RunSegment, cancelled: Cancelled) -> SegmentDone:
        seconds: dict[str, float] = {}
        started = time.monotonic()
        fail_point("segment_begun")
        with self._models.use(command.task.model) as device:
            outcome = run_segment(
                command.task,
                decoders=self._decoders,
                device=device,
                cancelled=cancelled,
                seconds=seconds,
                advance=lambda frames: self._send(Advanced(command.ticket, frames)),
            )
        fail_point("segment_run")
        return SegmentDone(command.ticket, outcome, time.monotonic() - started, seconds)

    def _index(self, command: IndexVideo, cancelled: Cancelled) -> IndexDone:
        def found(item: IndexItem) -> None:
            self._send(IndexFound(command.ticket, item))

        return IndexDone(command.ticket, index_video(self._decoders, command.task, found, cancelled))

    def _heartbeat(self) -> Heartbeat:
        devices = self._models.devices()
        call_seconds, call_job_id = max(
            (device.running_call for device in devices), default=(0.0, None), key=lambda call: call[0]
        )
        fault = next((device.lost for device in devices if device.lost is not None), None)
        totals = self._models.totals()
        crowded, displaced = self._models.without_room()
        return Heartbeat(
            loaded=self._models.loaded(),
            crowded=crowded,
            displaced=displaced,
            loading_seconds=self._models.loading_seconds(),
            call_seconds=call_seconds,
            call_job_id=call_job_id,
            frames=totals.frame_count,
            busy_seconds=totals.busy_seconds,
            device_fault=None if fault is None else str(fault),
            out_of_memory_count=totals.out_of_memory_count,
            model_fault_count=totals.model_fault_count,
            dropped_box_count=totals.dropped_box_count,
        )

    def _send(self, message: Any) -> None:
        with self._sending:
            self._channel.send(message)


def failure(ticket: int, error: BaseException) -> Failed:
    """Return what the engine gets for `error`. An unexpected one is logged here, with its traceback."""
    match error:
        case WorkCancelled():
            return Failed(ticket, Reason.CANCELLED)
        case WornOut() | MemoryError():
            return Failed(ticket, Reason.WORN, str(error) or "There is not enough memory.")
        case UntriedModel():
            return Failed(ticket, Reason.UNTRIED, str(error))
        case NoRoomForModel():
            return Failed(ticket, Reason.NO_ROOM, str(error))
        case ModelFault(__cause__=OSError() as cause) if is_of_the_machine(error):
            return failure(ticket, cause)
        case FrameboxError():
            return Failed(ticket, Reason.REFUSED, error.detail, error.code, error.extensions)
        case OSError():
            return Failed(ticket, Reason.DISK, type(error).__name__, errno=error.errno or 0)
        case DeviceLost():
            reason = Reason.DEVICE_LOST
        case _:
            reason = Reason.HOST
            _log.error("host failed", exc_info=error)
    return Failed(ticket, reason, f"{type(error).__name__}: {error}")
