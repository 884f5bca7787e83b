"""The one thread that runs a model on a device: batches go in, and futures of their boxes come out."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.detection.checks import Checked, check_batch
from app.detection.detector import (
    Detections,
    Detector,
    DeviceLost,
    DeviceOutOfMemory,
    is_out_of_memory,
)
from app.detection.devices import Ask, sticking_fault, why_lost
from app.detection.frame_copies import FrameCopies, copies_to
from app.detection.runtime import describe_runtime
from app.errors import FrameboxError, ModelFault

Frames = npt.NDArray[np.uint8]  # (n, height, width, 3) RGB

QUEUED_BATCHES = 4  # of an owner: the device never waits for a hand-over; each pins its frames' memory
REMEMBERED_OWNERS = 64  # whose last turns are kept: more than there are jobs at a time
SUBMIT_TIMEOUT_SECONDS = 300.0
CLOSE_TIMEOUT_SECONDS = 30.0
REGROW_AFTER_CALLS = 64  # after so many that fitted, a batch size that lack of memory halved is doubled again

_log = logging.getLogger(__name__)


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
    """Return what all of them have done together."""
    return DeviceStats(*(sum(column) for column in zip(*map(astuple, stats), strict=True)))


class CallGate:
    """Lets models compute side by side, or one alone: while it is measured."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0
        self._is_closed = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wait until nobody is alone; the block counts as a call."""
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
        """Wait until no call is under way; none begins during the block. One caller at a time."""
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

    Owners take turns, so that one with many batches on the way has no more of the device than one with few;
    the batches of one are run in their order.

    Frames for a model that takes them on its device are copied there by whoever brings them.

    The model computes with as many torch threads as the thread that made this object would.
    A model that raises or returns nonsense fails its batch with ModelFault; the thread goes on.
    A lost device fails its batch and every later one with DeviceLost: the process has to start anew.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        queued_batches: int = QUEUED_BATCHES,
        gate: CallGate | None = None,
        free_memory: Callable[[], None] = lambda: None,
        copies_to: Callable[[str], FrameCopies | None] = copies_to,
        ask_device: Ask = sticking_fault,
    ) -> None:
        """`free_memory` is called, in this thread, where one frame finds none; then it is tried once more."""
        if queued_batches < 1:
            raise ValueError("queued_batches must be at least 1")
        self._detector = detector
        self._copies = copies_to(detector.device) if detector.takes_device_frames else None
        self._gate = gate or CallGate()
        self._free_memory = free_memory
        self._ask_device = ask_device
        self._queued_batches = queued_batches
        self._torch_threads = torch.get_num_threads()
        self._queue: deque[_Batch] = deque()
        self._turns: OrderedDict[str | None, int] = OrderedDict()  # each owner's last; ascending
        self._changed = threading.Condition()  # guards _queue, _turns, _closing and _lost
        self._closing = False
        self._lost: DeviceLost | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"device {detector.device} {detector.name}", daemon=True
        )
        # The device's thread alone writes these; others read whole values.
        self._stats = DeviceStats()
        self._call: tuple[float, str | None] | None = None  # when the model's present call began, for whom
        self._fitting = _FittingSize(detector.batch_size)

    @property
    def detector(self) -> Detector:
        return self._detector

    @property
    def runtime(self) -> str:
        """What computes the boxes, beside the model; see `describe_runtime`."""
        return describe_runtime(self._detector.device, threads=self._torch_threads)

    @property
    def stats(self) -> DeviceStats:
        return self._stats

    @property
    def lost(self) -> DeviceLost | None:
        """Why the device is unusable, once it is."""
        return self._lost

    @property
    def running_call(self) -> tuple[float, str | None]:
        """How many seconds the model has been at its present call, and for which owner; 0 while idle.

        What shows a watchdog a hang.
        """
        call = self._call
        return (0.0, None) if call is None else (time.monotonic() - call[0], call[1])

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Finish the batch under way, cancel those behind it, and end the thread. Twice is fine.

        Raises TimeoutError if the model does not come back in time; its thread then ends with the process.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        frames: Frames,
        *,
        owner: str | None = None,
        timeout_seconds: float = SUBMIT_TIMEOUT_SECONDS,
    ) -> Future[list[Detections]]:
        """Queue a batch and return the future of its detections, one a frame, in order.

        `frames`: (n, height, width, 3) uint8 RGB, 1 ≤ n ≤ the detector's batch_size. A writable array is not
        copied in host memory, so it must stay as it is until the future is done or its `cancel` returned
        true; a future that is not wanted any more can be cancelled until the model takes it. `owner` takes
        turns with others, and is whom `running_call` names while the model is at it.
        The future fails with ModelFault or DeviceLost, and is cancelled if the thread is closed first.
        Raises DeviceBusy if the owner's queue stays full for `timeout_seconds`, DeviceLost once the device
        is lost, RuntimeError on a closed thread.
        """
        _check_frames(frames, self._detector.batch_size)
        batch = _Batch(self._send(frames), Future(), owner)
        with self._changed:
            has_room = self._changed.wait_for(lambda: self._takes_or_refuses(owner), timeout_seconds)
            if self._lost is not None:
                raise DeviceLost(*self._lost.args)
            if self._closing:
                raise RuntimeError(f"{self._thread.name} is closed")
            if not has_room:
                raise DeviceBusy(f"{self._thread.name} took no batch for {timeout_seconds:g} s")
            self._queue.append(batch)
            self._changed.notify_all()
        return batch.future

    def _send(self, frames: Frames) -> Tensor:
        """Return `frames` where the model takes them. Raises DeviceLost."""
        host_frames = _as_tensor(frames)
        if self._copies is None or self._lost is not None:
            return host_frames
        try:
            return self._copies.send(host_frames)
        except Exception as error:
            if is_out_of_memory(error):
                return host_frames  # the model takes those too, in as small batches as fit
            raise self._lose(error) from error

    def _takes_or_refuses(self, owner: str | None) -> bool:
        queued = sum(batch.owner == owner for batch in self._queue)
        return self._closing or self._lost is not None or queued < self._queued_batches

    # ---- the device's thread

    def _run(self) -> None:
        # The number is each thread's own; a new one begins with what whichever thread set last.
        torch.set_num_threads(self._torch_threads)
        while (batch := self._next_batch()) is not None:
            if batch.future.set_running_or_notify_cancel():
                self._answer(batch)
            del batch  # its frames are a decoder's memory, which this thread would hold while it waits

    def _next_batch(self) -> _Batch | None:
        with self._changed:
            # No deadline: an idle device waits for work, and `close` wakes it.
            self._changed.wait_for(lambda: self._closing or bool(self._queue))
            if self._closing:
                return None
            batch = min(self._queue, key=lambda queued: self._turns.get(queued.owner, 0))
            self._queue.remove(batch)
            self._note_turn(batch.owner)
            self._changed.notify_all()
            return batch

    def _note_turn(self, owner: str | None) -> None:
        latest = next(reversed(self._turns.values()), 0)
        self._turns.pop(owner, None)
        self._turns[owner] = latest + 1
        if len(self._turns) > REMEMBERED_OWNERS:
            self._turns.popitem(last=False)

    def _answer(self, batch: _Batch) -> None:
        if self._lost is not None:
            batch.future.set_exception(DeviceLost(*self._lost.args))
            return
        try:
            detections = self._detect(batch)
        except BaseException as error:  # noqa: BLE001 - the model's boundary: whatever it raises, its batch ends
            batch.future.set_exception(self._fault(error))
            del batch  # else the error holds this frame, the frame its future, and that the error: for long
        else:
            batch.future.set_result(detections)

    def _detect(self, batch: _Batch) -> list[Detections]:
        """Run a batch, in as many calls as memory asks for. Raises whatever the model raises."""
        frames = batch.frames
        if self._copies is not None:
            self._copies.receive(frames)
        detections: list[Detections] = []
        has_freed = False
        while len(detections) < len(frames):
            done = len(detections)
            part = frames[done : done + self._fitting.size]
            checked = self._run_model(part, batch.owner)
            if checked is None:
                if len(part) == 1 and has_freed:
                    name = self._detector.name
                    told = f"The device has no memory for one frame with model {name!r}."
                    raise ModelFault(told) from DeviceOutOfMemory()
                has_freed = len(part) == 1
                self._shrink(len(part))
                continue
            self._fitting.fitted()
            self._count(dropped_box_count=checked.dropped_box_count)
            detections += checked.detections
        self._count(frame_count=len(frames))
        return detections

    def _run_model(self, frames: Tensor, owner: str | None) -> Checked | None:
        """Return what the model found, or None if it ran out of memory."""
        with self._gate.call():
            return self._call_model(frames, owner)

    def _call_model(self, frames: Tensor, owner: str | None) -> Checked | None:
        started_at = time.monotonic()
        self._call = (started_at, owner)
        try:
            with torch.inference_mode():
                outputs = self._detector.detect(frames)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            self._call = None
            self._count(busy_seconds=time.monotonic() - started_at)
        count, height, width, _ = frames.shape
        return check_batch(
            self._detector.name,
            outputs,
            frame_count=count,
            width=width,
            height=height,
            class_count=len(self._detector.class_names),
        )

    def _shrink(self, size: int) -> None:
        self._count(out_of_memory_count=1)
        if self._detector.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if size == 1:
            self._free_memory()
            return
        self._fitting.halve(size)
        _log.warning(
            "batch does not fit on the device",
            extra={"device": self._detector.device, "frames": size, "next_frames": self._fitting.size},
        )

    def _fault(self, error: BaseException) -> FrameboxError | DeviceLost:
        """The error that the batch's owner is told; what it hides from the caller goes to the log."""
        name = self._detector.name
        lost = why_lost(error, [self._detector.device], self._ask_device)
        if lost is not None:
            return self._lose(lost)
        self._count(model_fault_count=1)
        _log.error("model failed", exc_info=error, extra={"model": name, "device": self._detector.device})
        if isinstance(error, ModelFault):
            return error
        fault = ModelFault(f"Model {name!r} raised {type(error).__name__}.")
        fault.__cause__ = error
        return fault

    def _lose(self, error: BaseException) -> DeviceLost:
        lost = DeviceLost(f"{self._detector.device}: {error}")
        lost.__cause__ = error
        with self._changed:
            self._lost = self._lost or lost
            self._changed.notify_all()
        _log.critical("device lost", exc_info=error, extra={"device": self._detector.device})
        return lost

    def _count(self, **grown: float) -> None:
        values = {name: getattr(self._stats, name) + by for name, by in grown.items()}
        self._stats = replace(self._stats, **values)


class _FittingSize:
    """How many frames fit in a call: halved when they do not, doubled again after many calls that did."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._calls_since_halved = 0
        self.size = largest

    def halve(self, tried: int) -> None:
        self.size = max(1, tried // 2)
        self._calls_since_halved = 0

    def fitted(self) -> None:
        self._calls_since_halved += 1
        if self.size < self._largest and self._calls_since_halved >= REGROW_AFTER_CALLS:
            self.size = min(self._largest, 2 * self.size)
            self._calls_since_halved = 0


def _check_frames(frames: Frames, batch_size: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be (n, height, width, 3) uint8, not {frames.shape} {frames.dtype}")
    if len(frames) > batch_size:
        raise ValueError(f"a batch of {len(frames)} frames, but the detector takes {batch_size}")


def _as_tensor(frames: Frames) -> Tensor:
    # torch has no read-only tensors: it warns of them, so these alone are copied.
    return torch.from_numpy(frames if frames.flags.writeable else frames.copy())
