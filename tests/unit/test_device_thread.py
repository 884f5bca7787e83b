"""The device's owner thread, with detectors that obey, run out of memory, fail, hang and lie."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from torch import Tensor

from app.detection.detector import Detections, DeviceLost, DeviceOutOfMemory
from app.detection.device import REGROW_AFTER_CALLS, DeviceBusy, DeviceThread
from app.detection.side_by_side import Arrangement
from app.errors import ModelFault
from app.settings import CHECKOUT

WAIT_SECONDS = 10


class ScriptedDetector:
    """Finds one box a frame, whose left edge is the frame's first pixel; `before` may spoil a call."""

    name = "scripted"
    fingerprint = "0" * 64
    class_names = ("thing",)
    default_min_score = 0.5
    batch_size = 8
    device = "cpu"
    precision = "float32"
    takes_device_frames = True

    def __init__(self, before: Callable[[Tensor], object] = len) -> None:
        self.before = before
        self.call_sizes: list[int] = []
        self.thread_names: set[str] = set()

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def detect(self, frames: Tensor) -> list[Detections]:
        self.call_sizes.append(len(frames))
        self.thread_names.add(threading.current_thread().name)
        self.before(frames)
        return [one_box(float(frame[0, 0, 0]), 100.0) for frame in frames]


def one_box(left: float, right: float, score: float = 0.9) -> Detections:
    return Detections(
        torch.tensor([[left, 0.0, right, 10.0]]), torch.tensor([score]), torch.zeros(1, dtype=torch.int64)
    )


def frames_marked(*marks: int) -> np.ndarray:
    frames = np.zeros((len(marks), 20, 200, 3), np.uint8)
    frames[:, 0, 0, 0] = marks
    return frames


def marks_of(detections: list[Detections]) -> list[int]:
    return [int(found.boxes_xyxy[0, 0]) for found in detections]


def test_batches_are_answered_in_order_by_one_named_thread() -> None:
    detector = ScriptedDetector()
    with DeviceThread(detector) as device:
        futures = [device.submit(frames_marked(n, n + 1)) for n in range(0, 40, 2)]
        answers = [mark for future in futures for mark in marks_of(future.result(WAIT_SECONDS))]
    assert answers == list(range(40))
    assert detector.thread_names == {"device cpu scripted"}
    assert device.stats.frame_count == 40


def test_owners_take_turns_however_many_batches_each_has_queued() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[int] = []

    def note(frames: Tensor) -> None:
        seen.append(int(frames[0, 0, 0, 0]))
        entered.set()
        leave.wait(WAIT_SECONDS)

    with DeviceThread(ScriptedDetector(note)) as device:
        futures = [device.submit(frames_marked(1), owner="large")]
        assert entered.wait(WAIT_SECONDS)
        futures += [device.submit(frames_marked(mark), owner="large") for mark in (2, 3, 4)]
        futures += [device.submit(frames_marked(mark), owner="small") for mark in (11, 12)]
        leave.set()
        for future in futures:
            future.result(WAIT_SECONDS)
    assert seen == [1, 11, 2, 12, 3, 4]


def test_an_owner_that_fills_its_queue_keeps_no_other_out() -> None:
    leave = threading.Event()
    with DeviceThread(ScriptedDetector(lambda _: leave.wait(WAIT_SECONDS)), queued_batches=1) as device:
        futures = [device.submit(frames_marked(mark), owner="large") for mark in (1, 2)]
        with pytest.raises(DeviceBusy):
            device.submit(frames_marked(3), owner="large", timeout_seconds=0.01)
        futures.append(device.submit(frames_marked(4), owner="small"))
        leave.set()
        assert [marks_of(future.result(WAIT_SECONDS)) for future in futures] == [[1], [2], [4]]


def test_frames_reach_the_model_without_a_copy() -> None:
    addresses: list[int] = []
    detector = ScriptedDetector(lambda frames: addresses.append(frames.data_ptr()))
    frames = frames_marked(1, 2)
    with DeviceThread(detector) as device:
        device.submit(frames).result(WAIT_SECONDS)
    assert addresses == [frames.ctypes.data]


def test_the_model_computes_with_as_many_threads_as_its_maker_would() -> None:
    before = torch.get_num_threads()
    counts: list[int] = []
    detector = ScriptedDetector(lambda _: counts.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    device = DeviceThread(detector)
    other = threading.Thread(target=torch.set_num_threads, args=(1,))  # as a detector's own pool does
    other.start()
    other.join()
    with device:
        device.submit(frames_marked(1)).result(WAIT_SECONDS)
    torch.set_num_threads(before)
    assert counts == [3]


def test_read_only_frames_are_taken() -> None:
    frames = frames_marked(3)
    frames.flags.writeable = False
    with DeviceThread(ScriptedDetector()) as device:
        assert marks_of(device.submit(frames).result(WAIT_SECONDS)) == [3]


@pytest.mark.parametrize(
    "error",
    [
        DeviceOutOfMemory("too much"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_batch_that_does_not_fit_is_halved_and_put_together_again(error: Exception) -> None:
    def fits_two(frames: Tensor) -> None:
        if len(frames) > 2:
            raise error

    detector = ScriptedDetector(fits_two)
    with DeviceThread(detector) as device:
        answer = device.submit(frames_marked(1, 2, 3, 4, 5, 6, 7)).result(WAIT_SECONDS)
    assert marks_of(answer) == [1, 2, 3, 4, 5, 6, 7]
    assert detector.call_sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert device.stats.out_of_memory_count == 2


def test_the_batch_grows_back_after_many_calls_that_fitted() -> None:
    tight = True

    def fits_four_at_first(frames: Tensor) -> None:
        if tight and len(frames) > 4:
            raise DeviceOutOfMemory("too much")

    detector = ScriptedDetector(fits_four_at_first)
    with DeviceThread(detector) as device:
        device.submit(frames_marked(*range(8))).result(WAIT_SECONDS)
        tight = False
        for _ in range(REGROW_AFTER_CALLS // 2):
            device.submit(frames_marked(*range(8))).result(WAIT_SECONDS)
    assert detector.call_sizes[:3] == [8, 4, 4]
    assert detector.call_sizes[-1] == 8


def test_one_frame_that_does_not_fit_is_a_fault_of_its_job_alone() -> None:
    def white_never_fits(frames: Tensor) -> None:
        if frames.max() == 255:
            raise DeviceOutOfMemory("too much")

    freed: list[None] = []
    with DeviceThread(ScriptedDetector(white_never_fits), free_memory=lambda: freed.append(None)) as device:
        bad, good = device.submit(frames_marked(1, 255)), device.submit(frames_marked(7))
        with pytest.raises(ModelFault, match="no memory for one frame"):
            bad.result(WAIT_SECONDS)
        assert marks_of(good.result(WAIT_SECONDS)) == [7]
    assert len(freed) == 1


def test_one_frame_that_does_not_fit_is_tried_again_once_memory_is_freed() -> None:
    is_full = True

    def does_not_fit_yet(_: Tensor) -> None:
        if is_full:
            raise DeviceOutOfMemory("too much")

    def free() -> None:
        nonlocal is_full
        is_full = False

    with DeviceThread(ScriptedDetector(does_not_fit_yet), free_memory=free) as device:
        assert marks_of(device.submit(frames_marked(1, 2, 3)).result(WAIT_SECONDS)) == [1, 2, 3]


def test_memory_is_freed_for_each_frame_that_finds_none() -> None:
    freed: list[None] = []
    used: list[None] = []

    def fits_once_after_each_freeing(_: Tensor) -> None:
        if len(freed) == len(used):
            raise DeviceOutOfMemory("too much")
        used.append(None)

    detector = ScriptedDetector(fits_once_after_each_freeing)
    with DeviceThread(detector, free_memory=lambda: freed.append(None)) as device:
        assert marks_of(device.submit(frames_marked(1, 2)).result(WAIT_SECONDS)) == [1, 2]
        assert device.stats.out_of_memory_count == 3
    assert detector.call_sizes == [2, 1, 1, 1, 1]


def test_a_batch_larger_than_the_devices_own_is_refused() -> None:
    with (
        DeviceThread(ScriptedDetector(), arrangement=Arrangement(2, 2)) as device,
        pytest.raises(ValueError, match="takes 2"),
    ):
        device.submit(frames_marked(1, 2, 3))


@pytest.mark.parametrize(
    "kind", [KeyError, SystemExit]
)  # the latter is no Exception, as a panic in Rust is none
def test_a_model_that_raises_fails_its_batch_and_the_thread_goes_on(kind: type[BaseException]) -> None:
    def fails_on_nine(frames: Tensor) -> None:
        if frames.max() == 9:
            raise kind("/secret/path")

    with DeviceThread(ScriptedDetector(fails_on_nine)) as device:
        bad, good = device.submit(frames_marked(9)), device.submit(frames_marked(4))
        with pytest.raises(ModelFault, match=f"raised {kind.__name__}") as caught:
            bad.result(WAIT_SECONDS)
        assert "secret" not in caught.value.detail
        assert isinstance(caught.value.__cause__, kind)
        assert marks_of(good.result(WAIT_SECONDS)) == [4]
    assert device.stats.model_fault_count == 1


def test_a_lost_device_fails_what_runs_what_waits_and_what_comes() -> None:
    entered, leave = threading.Event(), threading.Event()

    def lose(frames: Tensor) -> None:
        entered.set()
        leave.wait(WAIT_SECONDS)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    detector = ScriptedDetector(lose)
    with DeviceThread(detector) as device:
        running = device.submit(frames_marked(1))
        assert entered.wait(WAIT_SECONDS)
        waiting = device.submit(frames_marked(2))
        leave.set()
        for future in (running, waiting):
            with pytest.raises(DeviceLost, match="device-side assert"):
                future.result(WAIT_SECONDS)
        with pytest.raises(DeviceLost):
            device.submit(frames_marked(3))
    assert device.lost is not None
    assert detector.call_sizes == [1]


def test_a_device_is_lost_whatever_the_library_calls_it_that_met_the_fault() -> None:
    def fail(frames: Tensor) -> None:
        raise RuntimeError("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED")

    asked: list[str] = []

    def sticking_fault(device: str) -> Exception | None:
        asked.append(device)
        return torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with DeviceThread(ScriptedDetector(fail), find_fault=sticking_fault) as device:
        with pytest.raises(DeviceLost, match="illegal memory access"):
            device.submit(frames_marked(1)).result(WAIT_SECONDS)
        assert device.lost is not None
    assert asked == ["cpu"]
    assert device.stats.model_fault_count == 0


# Runs in a process of its own: CUDA is of no use in it afterwards.
LOSE_A_GPU = """
import sys
import torch
from app.detection.detector import DeviceLost
from app.detection.device import DeviceThread
from tests.unit.test_device_thread import ScriptedDetector, frames_marked

def lose(frames):
    if frames.max() == 2:
        there = torch.zeros(3, device=frames.device)[torch.tensor([1000], device=frames.device)]
        try:
            there.cpu()
        except RuntimeError as error:
            raise ValueError("in words of its own") from error

detector = ScriptedDetector(lose)
detector.device = sys.argv[1]
with DeviceThread(detector) as device:
    device.submit(frames_marked(1)).result(60)
    for _ in range(2):
        try:
            device.submit(frames_marked(2)).result(60)
        except DeviceLost as lost:
            print("lost:", lost)
"""


def test_a_gpu_that_met_a_fault_is_lost(cuda: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOSE_A_GPU, cuda],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout.count(f"lost: {cuda}: CUDA error: device-side assert triggered") == 2, run.stderr


def test_a_full_queue_is_refused_at_the_deadline_and_close_cancels_what_waits() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(frames: Tensor) -> None:
        entered.set()
        leave.wait(WAIT_SECONDS)

    device = DeviceThread(ScriptedDetector(hang), queued_batches=1)
    device.start()
    running = device.submit(frames_marked(1))
    assert entered.wait(WAIT_SECONDS)
    waiting = device.submit(frames_marked(2))
    with pytest.raises(DeviceBusy):
        device.submit(frames_marked(3), timeout_seconds=0.01)
    assert device.running_call[0] > 0
    with pytest.raises(TimeoutError):
        device.close(timeout_seconds=0.01)
    with pytest.raises(CancelledError):
        waiting.result(WAIT_SECONDS)
    leave.set()
    assert marks_of(running.result(WAIT_SECONDS)) == [1]
    device.close()
    assert device.running_call == (0.0, None)
    with pytest.raises(RuntimeError, match="closed"):
        device.submit(frames_marked(4))


def test_a_cancelled_batch_never_reaches_the_model() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(frames: Tensor) -> None:
        entered.set()
        leave.wait(WAIT_SECONDS)

    detector = ScriptedDetector(hold)
    with DeviceThread(detector) as device:
        first = device.submit(frames_marked(1))
        assert entered.wait(WAIT_SECONDS)
        unwanted, wanted = device.submit(frames_marked(2)), device.submit(frames_marked(3, 4))
        assert unwanted.cancel()
        leave.set()
        first.result(WAIT_SECONDS)
        assert marks_of(wanted.result(WAIT_SECONDS)) == [3, 4]
    assert detector.call_sizes == [1, 2]


def in_pieces(callers: int, *, batch_size: int = 8, piece_size: int = 1) -> Arrangement:
    return Arrangement(batch_size, piece_size, callers, inner_threads=1)


def test_pieces_are_cut_at_the_same_frames_and_put_together_in_order() -> None:
    detector = ScriptedDetector()
    with DeviceThread(detector, arrangement=in_pieces(3, piece_size=3)) as device:
        answers = [device.submit(frames_marked(*range(8))) for _ in range(4)]
        assert [marks_of(answer.result(WAIT_SECONDS)) for answer in answers] == [[*range(8)]] * 4
        assert device.stats.frame_count == 32
    assert sorted(detector.call_sizes) == [2] * 4 + [3] * 8


def test_a_thread_takes_pieces_of_the_next_batch_while_another_is_still_in_the_last() -> None:
    slow, leave = threading.Event(), threading.Event()

    def hold_one(frames: Tensor) -> None:
        if frames.max() == 1:
            slow.set()
            leave.wait(WAIT_SECONDS)

    with DeviceThread(ScriptedDetector(hold_one), arrangement=in_pieces(2)) as device:
        first, second = device.submit(frames_marked(1, 2)), device.submit(frames_marked(3, 4))
        assert slow.wait(WAIT_SECONDS)
        assert marks_of(second.result(WAIT_SECONDS)) == [3, 4]
        assert not first.done()
        assert device.running_call[0] > 0
        leave.set()
        assert marks_of(first.result(WAIT_SECONDS)) == [1, 2]


def test_a_batch_fails_once_when_pieces_fail_and_no_thread_reads_its_frames() -> None:
    together = threading.Barrier(2)
    in_model: list[int] = []

    def fail(frames: Tensor) -> None:
        if frames.max() > 9:
            in_model.append(1)
            together.wait(WAIT_SECONDS)
            in_model.pop()
            raise KeyError

    detector = ScriptedDetector(fail)
    with DeviceThread(detector, arrangement=in_pieces(2)) as device:
        bad, good = device.submit(frames_marked(11, 12, 13, 14)), device.submit(frames_marked(5))
        with pytest.raises(ModelFault, match="KeyError"):
            bad.result(WAIT_SECONDS)
        assert not in_model
        assert marks_of(good.result(WAIT_SECONDS)) == [5]
    assert device.stats.model_fault_count == 1
    assert len(detector.call_sizes) == 3  # two of the four pieces were never begun


def test_frames_that_fit_only_alone_are_tried_again_alone() -> None:
    running: list[int] = []
    together = threading.Barrier(3)
    tried: set[int] = set()

    def fits_alone(frames: Tensor) -> None:
        mark = int(frames.max())
        running.append(mark)
        try:
            if mark in (1, 2, 3) and mark not in tried:  # the first three, which run at a time
                tried.add(mark)
                together.wait(WAIT_SECONDS)
                raise DeviceOutOfMemory("too much")
            if mark in (1, 2, 3) and len(running) > 1:
                raise DeviceOutOfMemory("too much")
        finally:
            running.remove(mark)

    with DeviceThread(ScriptedDetector(fits_alone), arrangement=in_pieces(3)) as device:
        answer = device.submit(frames_marked(*range(1, 9)))
        assert marks_of(answer.result(WAIT_SECONDS)) == [*range(1, 9)]


def test_closing_finishes_a_batch_that_was_begun() -> None:
    begun, leave = threading.Event(), threading.Event()

    def hold(frames: Tensor) -> None:
        begun.set()
        leave.wait(WAIT_SECONDS)

    device = DeviceThread(ScriptedDetector(hold), arrangement=in_pieces(2))
    device.start()
    running, waiting = device.submit(frames_marked(*range(6))), device.submit(frames_marked(7))
    assert begun.wait(WAIT_SECONDS)
    threading.Timer(0.05, leave.set).start()
    device.close()
    assert marks_of(running.result(0)) == [*range(6)]
    assert waiting.cancelled()


def test_a_thread_that_never_started_closes() -> None:
    DeviceThread(ScriptedDetector()).close()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((9, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float32),
    ],
    ids=lambda frames: f"{frames.shape}-{frames.dtype}",
)
def test_a_batch_of_another_shape_is_refused(frames: np.ndarray) -> None:
    with DeviceThread(ScriptedDetector()) as device, pytest.raises(ValueError, match="frames"):
        device.submit(frames)
