"""How frames get onto a device, with copies and a CUDA runtime that are told what to do, and real ones."""

from __future__ import annotations

import os
import threading
from enum import Enum

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from test_device_thread import ScriptedDetector, frames_marked, marks_of
from torch import Tensor

from app.detection.detector import DeviceLost
from app.detection.device import DeviceThread
from app.detection.frame_copies import FrameCopies, Pinning, copies_to, pinning_for
from app.detection.hog import HogPeopleDetector
from app.video.protocol import ring

WAIT_SECONDS = 10
RING_BYTES = 1 << 20


class CopiesThatAre(FrameCopies):
    """Sends frames to another place of host memory, without a device; `fault` is raised instead."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.sent: list[tuple[str, int]] = []  # by which thread, where to
        self.received: list[tuple[str, int]] = []

    def send(self, frames: Tensor) -> Tensor:
        if self.fault is not None:
            raise self.fault
        sent = frames.clone()
        self.sent.append((threading.current_thread().name, sent.data_ptr()))
        return sent

    def receive(self, frames: Tensor) -> None:
        self.received.append((threading.current_thread().name, frames.data_ptr()))


class Status(Enum):
    success = 0
    notSupported = 801  # noqa: N815 - as CUDA names it


class RuntimeThatIs:
    """The functions of CUDA's runtime that pin; they do as they are told, and note who called them."""

    cudaError = Status  # noqa: N815 - as CUDA names it

    def __init__(self, status: Status = Status.success) -> None:
        self.status = status
        self.calls: list[tuple[object, ...]] = []
        self.threads: set[str] = set()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> Status:  # noqa: N802
        self.calls.append(("register", address, size, flags))
        self.threads.add(threading.current_thread().name)
        return self.status

    def cudaHostUnregister(self, address: int) -> Status:  # noqa: N802
        self.calls.append(("unregister", address))
        self.threads.add(threading.current_thread().name)
        return self.status

    def cudaGetErrorString(self, status: Status) -> str:  # noqa: N802
        return f"error {status.value}"


def ring_memory() -> np.ndarray:
    descriptor, memory = ring.create_memory(RING_BYTES)
    os.close(descriptor)
    return memory


def test_whoever_brings_frames_copies_them_and_may_use_their_memory_anew() -> None:
    copies, seen = CopiesThatAre(), []
    detector = ScriptedDetector(lambda frames: seen.append(frames.data_ptr()))
    frames = frames_marked(3, 4)
    with DeviceThread(detector, copies_to=lambda _: copies) as device:
        future = device.submit(frames)
        frames[:] = 0
        assert marks_of(future.result(WAIT_SECONDS)) == [3, 4]
    ((sender, place),) = copies.sent
    assert sender == threading.current_thread().name
    assert copies.received == [("device cpu scripted", place)]
    assert seen == [place]


def test_a_model_made_for_host_memory_gets_its_frames_there() -> None:
    copies, seen = CopiesThatAre(), []
    detector = ScriptedDetector(lambda frames: seen.append(frames.data_ptr()))
    detector.takes_device_frames = False
    frames = frames_marked(5)
    with DeviceThread(detector, copies_to=lambda _: copies) as device:
        assert marks_of(device.submit(frames).result(WAIT_SECONDS)) == [5]
    assert copies.sent == []
    assert seen == [frames.ctypes.data]


def test_frames_for_which_the_device_has_no_room_go_with_the_models_call() -> None:
    copies = CopiesThatAre(torch.OutOfMemoryError("CUDA out of memory"))
    with DeviceThread(ScriptedDetector(), copies_to=lambda _: copies) as device:
        assert marks_of(device.submit(frames_marked(1, 2, 3)).result(WAIT_SECONDS)) == [1, 2, 3]
        assert device.lost is None


def test_a_device_that_takes_no_copy_is_lost() -> None:
    copies = CopiesThatAre(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with DeviceThread(ScriptedDetector(), copies_to=lambda _: copies) as device:
        with pytest.raises(DeviceLost, match="illegal memory access"):
            device.submit(frames_marked(1))
        assert device.lost is not None
        copies.fault = None
        with pytest.raises(DeviceLost):
            device.submit(frames_marked(2))
    assert copies.sent == []


def test_memory_stays_pinned_until_the_last_view_of_it_is_gone() -> None:
    runtime, memory = RuntimeThatIs(), ring_memory()
    address, size = memory.ctypes.data, memory.nbytes
    Pinning(runtime).pin(memory)
    assert runtime.calls == [("register", address, size, 1)]
    frames = memory[ring.HEADER_BYTES :][: 6 * 100].reshape(2, 10, 10, 3)
    del memory
    assert len(runtime.calls) == 1
    del frames
    assert runtime.calls[1:] == [("unregister", address)]
    # CUDA remembers a fault for the thread that met it.
    assert runtime.threads == {"pin-memory"}


def test_memory_that_cannot_be_pinned_is_used_all_the_same() -> None:
    runtime, memory = RuntimeThatIs(Status.notSupported), ring_memory()
    with capture_logs() as lines:
        Pinning(runtime).pin(memory)
    assert [line["reason"] for line in lines] == ["error 801"]
    memory[:] = 1
    del memory
    assert len(runtime.calls) == 1


def test_nothing_is_pinned_or_sent_where_the_cpu_computes() -> None:
    assert pinning_for(["cpu"]) is None
    assert copies_to("cpu") is None


def test_a_gpu_reads_the_ring_by_itself(cuda: str) -> None:
    pinning, copies, memory = pinning_for([cuda]), copies_to(cuda), ring_memory()
    assert pinning is not None
    assert copies is not None
    pinning.pin(memory)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 100, 200, 3), dtype=np.uint8)
    frames = memory[ring.HEADER_BYTES :][: pixels.size].reshape(pixels.shape)
    frames[:] = pixels
    host_frames = torch.from_numpy(frames)
    assert host_frames.is_pinned()
    sent = copies.send(host_frames)
    assert sent.device == torch.device(cuda)
    copies.receive(sent)
    assert np.array_equal(sent.cpu().numpy(), pixels)
    copies.receive(host_frames)  # those that found no room


def test_frames_sent_ahead_give_the_same_boxes(cuda: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 260, 200, 3), dtype=np.uint8)
    pixels[:, 60:, 80:110] = 255
    detector = HogPeopleDetector(cuda)
    with torch.inference_mode():
        wanted = [detector.detect(torch.from_numpy(frame[None]))[0] for frame in pixels]
    with DeviceThread(detector) as device:
        futures = [device.submit(frame[None].copy()) for frame in pixels for _ in range(20)]
        for number, future in enumerate(futures):
            (found,) = future.result(WAIT_SECONDS)
            assert torch.equal(found.boxes_xyxy, wanted[number // 20].boxes_xyxy)
            assert torch.equal(found.scores, wanted[number // 20].scores)
