"""The one thread that runs a model on a device: batches go in, futures of their boxes come out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
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
    busy_seconds: float = 0.0  # inside the model
    out_of_memory_count: int = 0  # calls that did not fit and were halved
    dropped_box_count: int = 0  # boxes without area inside their frame
    model_fault_count: int = 0  # batches that failed


def add_stats(stats: Iterable[DeviceStats]) -> DeviceStats:
    """Return the sums of all of them."""
    return DeviceStats(*(sum(column) for column in zip(*map(astuple, stats), strict=True)))


class CallGate:
    """Lets models compute side by side, or only one, while it is measured."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0
        self._is_closed = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wait until no block of `alone` is running; this block counts as a call."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no call is running; none begins during the block. One caller at a time."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._calls)
        try:
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    frames: Tensor  # on the device, if its model takes them so
    future: Future[list[Detections]]
    owner: str | None


class DeviceThread:
    """Runs one detector, batch by batch. Several devices: several of these.

    Owners take turns, so that one with many queued batches gets no more of the device than one with few;
    the batches of one owner run in their order.

    `submit` copies frames to the device, in the calling thread, for a model that takes them there.

    The model computes with as many torch threads as the thread that made this object would.
    A model that raises or returns nonsense fails its batch with ModelFault; the thread goes on.
    A lost device fails its batch and every later one with DeviceLost: the process has to restart.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        batch_size: int | None = None,
        queued_batches: int = QUEUED_BATCHES,
        gate: CallGate | None = None,
        free_memory: Callable[[], None] = lambda: None,
        copies_to: Callable[[str], FrameCopies | None] = copies_to,
        find_fault: FaultFinder = sticking_fault,
    ) -> None:
        """Take batches of at most `batch_size` frames, by default as many as the detector takes.

        If there is no memory for a single frame, this object's thread calls `free_memory` and tries again.
        """
        if queued_batches < 1:
            raise ValueError("queued_batches must be at least 1")
        self.detector = detector
        self.batch_size = batch_size or detector.batch_size  # frames that `submit` takes at a time, at most
        self._copies = copies_to(detector.device) if detector.takes_device_frames else None
        self._gate = gate or CallGate()
        self._free_memory = free_memory
        self._find_fault = find_fault
        self._queued_batches = queued_batches
        self._torch_threads = torch.get_num_threads()
        self._queue: deque[_Batch] = deque()
        self._turns: OrderedDict[str | None, int] = OrderedDict()  # each owner's last; ascending
        self._changed = threading.Condition()  # guards _queue, _turns, _closing and lost
        self._closing = False
        self.lost: DeviceLost | None = None  # why the device is unusable, once it is
        self._thread = threading.Thread(
            target=self._run, name=f"device {detector.device} {detector.name}", daemon=True
        )
        # Only the device's thread writes these; others read whole values.
        self.stats = DeviceStats()
        self._call: tuple[float, str | None] | None = None  # when the current call began, and its owner
        # How many frames fit in a call: halved when they do not, doubled after many calls that fitted.
        self._fitting_size = self.batch_size
        self._fitting_calls = 0  # since it was halved or doubled

    @property
    def running_call(self) -> tuple[float, str | None]:
        """For a watchdog: how long the model's current call has taken, in seconds, and its owner."""
        call = self._call
        return (0.0, None) if call is None else (time.monotonic() - call[0], call[1])

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Finish the running batch, cancel the queued ones, and end the thread. Calling it twice is fine.

        Raises TimeoutError if the model does not return in time; its thread then ends with the process.
        """
        with self._changed:
            self._closing = True
            waiting = tuple(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for batch in waiting:
            batch.future.cancel()
        if self._thread.ident is None:
            return
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._thread.name} is still in the model after {timeout_seconds:g} s")

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
                raise RuntimeError(f"{self._thread.name} is closed")
            if not has_room:
                raise DeviceBusy(f"{self._thread.name} took no batch for {timeout_seconds:g} s")
            self._queue.append(batch)
            self._changed.notify_all()
        return batch.future

    # ---- the device's thread

    def _run(self) -> None:
        # Each thread has its own number; a new one begins with the number that any thread set last.
        torch.set_num_threads(self._torch_threads)
        while True:
            with self._changed:
                # No deadline: an idle device waits for work, and `close` wakes it.
                self._changed.wait_for(lambda: self._closing or bool(self._queue))
                if self._closing:
                    return
                batch = min(self._queue, key=lambda queued: self._turns.get(queued.owner, 0))
                self._queue.remove(batch)
                latest_turn = next(reversed(self._turns.values()), 0)
                self._turns.pop(batch.owner, None)
                self._turns[batch.owner] = latest_turn + 1
                if len(self._turns) > REMEMBERED_OWNERS:
                    self._turns.popitem(last=False)
                self._changed.notify_all()
            if batch.future.set_running_or_notify_cancel():
                if self.lost is not None:
                    batch.future.set_exception(DeviceLost(*self.lost.args))
                else:
                    try:
                        detections = self._detect(batch)
                    except BaseException as error:  # noqa: BLE001 - the model's boundary: any error ends its batch
                        batch.future.set_exception(self._fault(error))
                    else:
                        batch.future.set_result(detections)
                        del detections
            # Its frames are a decoder's memory, which this thread would hold while it waits. An error holds
            # this frame, the frame the future, and that the error.
            del batch

    def _detect(self, batch: _Batch) -> list[Detections]:
        """Run a batch, in as many calls as memory requires. Raises whatever the model raises."""
        frames = batch.frames
        if self._copies is not None:
            self._copies.receive(frames)
        detections: list[Detections] = []
        while len(detections) < len(frames):
            done = len(detections)
            part = frames[done : done + self._fitting_size]
            checked = self._run_model(part, batch.owner)
            if checked is None:
                self._count(out_of_memory_count=1)
                if self.detector.device.startswith("cuda"):
                    torch.cuda.empty_cache()
                if len(part) > 1:
                    self._fitting_size, self._fitting_calls = len(part) // 2, 0
                    _log.warning(
                        "batch does not fit on the device",
                        device=self.detector.device,
                        frames=len(part),
                        next_frames=self._fitting_size,
                    )
                    continue
                self._free_memory()
                checked = self._run_model(part, batch.owner)
                if checked is None:
                    raise ModelFault(
                        f"The device has no memory for one frame with model {self.detector.name!r}."
                    ) from DeviceOutOfMemory()
            self._fitting_calls += 1
            if self._fitting_size < self.batch_size and self._fitting_calls >= REGROW_AFTER_CALLS:
                self._fitting_size, self._fitting_calls = min(self.batch_size, 2 * self._fitting_size), 0
            found, dropped_box_count = checked
            detections += found
            self._count(dropped_box_count=dropped_box_count)
        self._count(frame_count=len(frames))
        return detections

    def _run_model(self, frames: Tensor, owner: str | None) -> tuple[list[Detections], int] | None:
        """Return what `check_batch` does, or None if the model ran out of memory."""
        with self._gate.call():
            started_at = time.monotonic()
            self._call = (started_at, owner)
            try:
                with torch.inference_mode():
                    outputs = self.detector.detect(frames)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return None
            finally:
                self._call = None
                self._count(busy_seconds=time.monotonic() - started_at)
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
        values = {name: getattr(self.stats, name) + by for name, by in grown.items()}
        self.stats = replace(self.stats, **values)
