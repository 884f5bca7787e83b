"""The threads that run a model on a device: batches go in, futures of their boxes come out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from app.detection.checks import check_batch
from app.detection.detector import (
    Detections,
    Detector,
    DeviceLost,
    DeviceOutOfMemory,
    is_out_of_memory,
)
from app.detection.devices import FaultFinder, sticking_fault, why_lost
from app.detection.frame_copies import FrameCopies, copies_to
from app.detection.side_by_side import STACK_BYTES, START_SECONDS, Arrangement
from app.errors import FrameboxError, ModelFault

Frames = npt.NDArray[np.uint8]  # (n, height, width, 3) RGB

QUEUED_BATCHES = 4  # of an owner, so that the device never waits for the next; each keeps its frames' memory
REMEMBERED_OWNERS = 64  # whose last turns are kept: more than there are jobs at a time
SUBMIT_TIMEOUT_SECONDS = 300.0
CLOSE_TIMEOUT_SECONDS = 30.0
REGROW_AFTER_CALLS = 64  # that fitted; then a batch size that lack of memory halved is doubled again

_log = structlog.get_logger(__name__)


class DeviceBusy(Exception):
    """The device's queue stayed full until the deadline."""


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """What a device has done since its thread started."""

    frame_count: int = 0
    busy_seconds: float = 0.0  # inside the model, on average over its threads
    out_of_memory_count: int = 0  # calls that did not fit and were halved
    dropped_box_count: int = 0  # boxes without area inside their frame
    model_fault_count: int = 0  # batches that failed


def add_stats(stats: Iterable[DeviceStats]) -> DeviceStats:
    """Return the sums of all of them."""
    return DeviceStats(*(sum(column) for column in zip(*map(astuple, stats), strict=True)))


@dataclass(slots=True, eq=False)
class _Batch:
    frames: Tensor  # on the device, if its model takes them so
    future: Future[list[Detections]]
    owner: str | None
    begun: int = 0  # frames that threads have taken, the first ones
    running: int = 0  # pieces that threads work on
    found: dict[int, list[Detections]] = field(default_factory=dict)  # of finished pieces, by first frame
    has_failed: bool = False
    fault: BaseException | None = None  # of the first piece that failed


class DeviceThread:
    """Runs one detector, batch by batch. Several devices: several of these.

    Owners take turns, so that one with many queued batches gets no more of the device than one with few;
    the batches of one owner run in their order. Each batch is cut into pieces, always at the same frames. A
    thread that is done with its piece takes the next, of the next batch if need be: none waits for another.

    `submit` copies frames to the device, in the calling thread, for a model that takes them there.

    A model that raises or returns nonsense fails its batch with ModelFault; the threads go on.
    A lost device fails its batch and every later one with DeviceLost: the process has to restart.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        arrangement: Arrangement | None = None,
        queued_batches: int = QUEUED_BATCHES,
        free_memory: Callable[[], None] = lambda: None,
        copies_to: Callable[[str], FrameCopies | None] = copies_to,
        find_fault: FaultFinder = sticking_fault,
    ) -> None:
        """By default one thread takes batches as large as the detector does, in one piece.

        If there is no memory for a single frame, a thread calls `free_memory`, and tries again while no other
        one runs the model.
        """
        if queued_batches < 1:
            raise ValueError("queued_batches must be at least 1")
        self.detector = detector
        self.arrangement = arrangement or Arrangement(detector.batch_size, detector.batch_size)
        self.batch_size = self.arrangement.batch_size  # frames that `submit` takes at a time, at most
        self._copies = copies_to(detector.device) if detector.takes_device_frames else None
        self._free_memory = free_memory
        self._find_fault = find_fault
        self._queued_batches = queued_batches
        self._torch_threads = torch.get_num_threads()
        self._queue: deque[_Batch] = deque()
        self._turns: OrderedDict[str | None, int] = OrderedDict()  # each owner's last; ascending
        self._changed = threading.Condition()  # guards all that follows, _queue and _turns
        self._current: _Batch | None = None  # the one whose next piece is taken next
        self._running = 0  # pieces that threads work on
        self._starving = 0  # threads that wait to be the only one that runs the model
        self._closing = False
        self.lost: DeviceLost | None = None  # why the device is unusable, once it is
        self.stats = DeviceStats()
        self._calls: dict[int, tuple[float, str | None]] = {}  # by thread: when it began, and its owner
        # How many frames fit in a call: halved when they do not, doubled after many calls that fitted.
        self._fitting_size = self.arrangement.piece_size
        self._fitting_calls = 0  # since it was halved or doubled
        self._name = f"device {detector.device} {detector.name}"
        callers = self.arrangement.callers
        self._begun = threading.Barrier(callers + 1)
        self._threads = [
            threading.Thread(target=self._run, name=self._name, daemon=True) for _ in range(callers)
        ]

    @property
    def running_call(self) -> tuple[float, str | None]:
        """For a watchdog: how long the longest of the model's current calls has taken, and its owner."""
        with self._changed:
            since, owner = min(self._calls.values(), default=(None, None), key=lambda call: call[0])
        return (0.0, None) if since is None else (time.monotonic() - since, owner)

    def start(self) -> None:
        """Start the threads. Raises RuntimeError if the system has no more of them."""
        own_count = torch.get_num_threads()
        usual_bytes = threading.stack_size(STACK_BYTES)
        try:
            for thread in self._threads:
                thread.start()
            self._begun.wait(START_SECONDS)
        except BaseException:
            self._begun.abort()
            raise
        finally:
            threading.stack_size(usual_bytes)
            torch.set_num_threads(own_count)  # new threads begin with the number that any thread set last

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Finish the running batches, cancel the queued ones, and end the threads. Calling it twice is fine.

        Raises TimeoutError if the model does not return in time; its threads then end with the process.
        """
        with self._changed:
            self._closing = True
            waiting = tuple(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for batch in waiting:
            batch.future.cancel()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    raise TimeoutError(f"{self._name} is still in the model after {timeout_seconds:g} s")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        frames: Frames,
        *,
        owner: str | None = None,
        timeout_seconds: float = SUBMIT_TIMEOUT_SECONDS,
    ) -> Future[list[Detections]]:
        """Queue a batch and return the future of its detections, one a frame, in order.

        `frames`: (n, height, width, 3) uint8 RGB, 1 ≤ n ≤ `batch_size`. A writable array is not copied in
        host memory, so it must not change until the future is done or its `cancel` returned true; the future
        can be cancelled until the model takes the batch. `owner` takes turns with others, and `running_call`
        names it.
        The future fails with ModelFault or DeviceLost, and is cancelled if the thread is closed first.
        Raises DeviceBusy if the owner's queue stays full for `timeout_seconds`, DeviceLost once the device
        is lost, RuntimeError on a closed thread.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(f"frames must be (n, height, width, 3) uint8, not {frames.shape} {frames.dtype}")
        if len(frames) > self.batch_size:
            raise ValueError(f"a batch of {len(frames)} frames, but the detector takes {self.batch_size}")
        # torch has no read-only tensors and warns about them, so read-only frames are copied.
        sent = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
        if self._copies is not None and self.lost is None:
            try:
                sent = self._copies.send(sent)
            except Exception as error:
                # The model also takes frames in host memory, in as small batches as fit.
                if not is_out_of_memory(error):
                    raise self._lose(error) from error
        batch = _Batch(sent, Future(), owner)

        def has_room_or_refuses() -> bool:
            queued = sum(other.owner == owner for other in self._queue)
            return self._closing or self.lost is not None or queued < self._queued_batches

        with self._changed:
            has_room = self._changed.wait_for(has_room_or_refuses, timeout_seconds)
            if self.lost is not None:
                raise DeviceLost(*self.lost.args)
            if self._closing:
                raise RuntimeError(f"{self._name} is closed")
            if not has_room:
                raise DeviceBusy(f"{self._name} took no batch for {timeout_seconds:g} s")
            self._queue.append(batch)
            self._changed.notify_all()
        return batch.future

    # ---- the device's threads

    def _run(self) -> None:
        # Each thread has its own number. The first call takes the common one, and would undo the next line.
        torch.get_num_threads()
        torch.set_num_threads(self.arrangement.inner_threads or self._torch_threads)
        try:
            self._begun.wait(START_SECONDS)
        except threading.BrokenBarrierError:
            return
        while (piece := self._next_piece()) is not None:
            batch, first, frames = piece
            try:
                found = self._detect(frames, batch.owner)
            except BaseException as error:  # noqa: BLE001 - the model's boundary: any error ends its batch
                self._drop_rest(batch, error)
                found = []
            with self._changed:
                self._running -= 1
                batch.running -= 1
                batch.found[first] = found
                self._changed.notify_all()
                is_done = batch.begun == len(batch.frames) and not batch.running
            if is_done:
                if batch.fault is not None:
                    batch.future.set_exception(batch.fault)
                else:
                    self._count(frame_count=len(batch.frames))
                    batch.future.set_result([one for _, part in sorted(batch.found.items()) for one in part])
            # Its frames are a decoder's memory, which this thread would hold while it waits.
            del piece, batch, frames, found

    def _next_piece(self) -> tuple[_Batch, int, Tensor] | None:
        """Wait for a piece; return its batch, its place and its frames. None once the threads shall end."""
        with self._changed:
            while True:
                # No deadline: an idle device waits for work, and `close` wakes it.
                self._changed.wait_for(
                    lambda: not self._starving and (self._current is not None or self._queue or self._closing)
                )
                if self._current is None:
                    if not self._queue:
                        return None
                    self._current = self._begin_batch()
                    continue
                batch, first = self._current, self._current.begun
                frames = batch.frames[first : first + self.arrangement.piece_size]
                batch.begun += len(frames)
                batch.running += 1
                self._running += 1
                if batch.begun == len(batch.frames):
                    self._current = None
                return batch, first, frames

    def _begin_batch(self) -> _Batch | None:
        """Take the next batch from the queue; None if it was cancelled, or the device is lost."""
        batch = min(self._queue, key=lambda queued: self._turns.get(queued.owner, 0))
        self._queue.remove(batch)
        latest_turn = next(reversed(self._turns.values()), 0)
        self._turns.pop(batch.owner, None)
        self._turns[batch.owner] = latest_turn + 1
        if len(self._turns) > REMEMBERED_OWNERS:
            self._turns.popitem(last=False)
        self._changed.notify_all()
        if not batch.future.set_running_or_notify_cancel():
            return None
        if self.lost is not None:
            batch.future.set_exception(DeviceLost(*self.lost.args))
            return None
        return batch

    def _drop_rest(self, batch: _Batch, error: BaseException) -> None:
        """Begin no further piece of a batch that failed, and note why, if no other piece has."""
        with self._changed:
            is_first, batch.has_failed = not batch.has_failed, True
            batch.begun = len(batch.frames)
            if self._current is batch:
                self._current = None
        if is_first:
            batch.fault = ModelFault(f"Model {self.detector.name!r} failed.")
            with suppress(MemoryError):  # the log writes a traceback
                batch.fault = self._fault(error)

    def _detect(self, frames: Tensor, owner: str | None) -> list[Detections]:
        """Run a piece, in as many calls as memory requires. Raises whatever the model raises."""
        if self._copies is not None:
            self._copies.receive(frames)
        detections: list[Detections] = []
        while len(detections) < len(frames):
            done = len(detections)
            part = frames[done : done + self._fitting_size]
            checked = self._run_model(part, owner)
            if checked is None:
                self._count(out_of_memory_count=1)
                if self.detector.device.startswith("cuda"):
                    torch.cuda.empty_cache()
                if len(part) > 1:
                    with self._changed:
                        self._fitting_size, self._fitting_calls = len(part) // 2, 0
                    _log.warning(
                        "batch does not fit on the device",
                        device=self.detector.device,
                        frames=len(part),
                        next_frames=len(part) // 2,
                    )
                    continue
                checked = self._run_alone(part, owner)
                if checked is None:
                    raise ModelFault(
                        f"The device has no memory for one frame with model {self.detector.name!r}."
                    ) from DeviceOutOfMemory()
            largest = self.arrangement.piece_size
            with self._changed:
                self._fitting_calls += 1
                if self._fitting_size < largest and self._fitting_calls >= REGROW_AFTER_CALLS:
                    self._fitting_size, self._fitting_calls = min(largest, 2 * self._fitting_size), 0
            found, dropped_box_count = checked
            detections += found
            self._count(dropped_box_count=dropped_box_count)
        return detections

    def _run_alone(self, frames: Tensor, owner: str | None) -> tuple[list[Detections], int] | None:
        """Run the model with all memory that can be had: while no other thread runs it."""
        self._free_memory()
        with self._changed:
            self._starving += 1  # no further piece is begun
            self._running -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running)
            self._running += 1
        try:
            return self._run_model(frames, owner)
        finally:
            with self._changed:
                self._starving -= 1
                self._changed.notify_all()

    def _run_model(self, frames: Tensor, owner: str | None) -> tuple[list[Detections], int] | None:
        """Return what `check_batch` does, or None if the model ran out of memory."""
        thread, started_at = threading.get_ident(), time.monotonic()
        with self._changed:
            self._calls[thread] = (started_at, owner)
        try:
            with torch.inference_mode():
                outputs = self.detector.detect(frames)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            with self._changed:
                del self._calls[thread]
            self._count(busy_seconds=(time.monotonic() - started_at) / len(self._threads))
        return check_batch(self.detector.name, outputs, frames, len(self.detector.class_names))

    def _fault(self, error: BaseException) -> FrameboxError | DeviceLost:
        """Return the error for the batch's owner; the log gets the details that it hides from the caller."""
        name = self.detector.name
        lost = why_lost(error, [self.detector.device], self._find_fault)
        if lost is not None:
            return self._lose(lost)
        self._count(model_fault_count=1)
        _log.error("model failed", exc_info=error, model=name, device=self.detector.device)
        if isinstance(error, ModelFault):
            return error
        fault = ModelFault(f"Model {name!r} raised {type(error).__name__}.")
        fault.__cause__ = error
        return fault

    def _lose(self, error: BaseException) -> DeviceLost:
        lost = DeviceLost(f"{self.detector.device}: {error}")
        lost.__cause__ = error
        with self._changed:
            self.lost = self.lost or lost
            self._changed.notify_all()
        _log.critical("device lost", exc_info=error, device=self.detector.device)
        return lost

    def _count(self, **grown: float) -> None:
        with self._changed:
            values = {name: getattr(self.stats, name) + by for name, by in grown.items()}
            self.stats = replace(self.stats, **values)
