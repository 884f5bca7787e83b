"""Threads that compute side by side: each alone, whatever the number of torch's threads elsewhere."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exported_networks import HEIGHT, WIDTH, Yolo, as_pt2
from torch import Tensor, nn

from app.detection.device import DeviceThread
from app.detection.measuring import MemoryMeter, measure
from app.detection.network import NetworkDetector
from app.detection.registry import load_detector
from app.detection.side_by_side import Arrangement, SideBySide

COUNT = 3
WAIT_SECONDS = 10


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(COUNT)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_each_computes_with_one_thread_and_the_caller_with_all() -> None:
    threads = SideBySide("test")
    assert threads.count == COUNT
    together = threading.Barrier(COUNT)

    def look(part: int) -> tuple[int, int, bool]:
        together.wait(WAIT_SECONDS)  # so that each thread has one
        torch.ones(1 << 20).sum()
        return part, torch.get_num_threads(), torch.is_inference_mode_enabled()

    for _ in range(2):
        assert threads.run(look, [1, 2, 3]) == [(part, 1, True) for part in (1, 2, 3)]
        assert torch.get_num_threads() == COUNT
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert others == [COUNT]


@pytest.mark.usefixtures("three_threads")
def test_what_one_raises_is_raised_when_all_have_ended() -> None:
    ended: list[int] = []

    def work(part: int) -> None:
        if part == 0:
            raise KeyError(part)
        time.sleep(0.05)
        ended.append(part)

    with pytest.raises(KeyError):
        SideBySide("test").run(work, [0, 1, 2])
    assert sorted(ended) == [1, 2]


@pytest.mark.usefixtures("three_threads")
def test_the_threads_end_with_their_owner() -> None:
    threads = SideBySide("short-lived")
    assert sum(thread.name.startswith("short-lived") for thread in threading.enumerate()) == COUNT
    del threads
    gc.collect()
    deadline = time.monotonic() + WAIT_SECONDS
    while any(thread.name.startswith("short-lived") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Convolving(Yolo):
    """Its scores depend on every pixel, through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 5)

    def brightness(self, pictures: Tensor) -> Tensor:
        convolved: Tensor = self.convolution(pictures)
        return super().brightness(pictures) * 0.9 + 0.01 * convolved.mean(dim=(1, 2, 3))


class Counting(Convolving):
    """Counts its calls in a buffer, and pays no heed to it."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def brightness(self, pictures: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().brightness(pictures)


def loaded(folder: Path, network: nn.Module) -> NetworkDetector:
    (folder / "model.pt2").write_bytes(as_pt2(network))
    detector = load_detector("model", device="cpu", models_folder=folder)
    assert isinstance(detector, NetworkDetector)
    return detector


@pytest.mark.usefixtures("three_threads")
def test_a_batch_is_computed_in_the_same_pieces_whichever_thread_takes_them(tmp_path: Path) -> None:
    detector = loaded(tmp_path, Convolving())
    levels = torch.linspace(120, 250, 8).to(torch.uint8)
    frames = levels[:, None, None, None].expand(8, HEIGHT, WIDTH, 3).contiguous()
    with torch.inference_mode():
        wanted = [found for piece in frames.split(3) for found in detector.detect(piece)]
    arrangement = Arrangement(batch_size=8, piece_size=3, callers=COUNT, inner_threads=1)
    with DeviceThread(detector, arrangement=arrangement) as device:
        batches = [device.submit(frames.numpy()) for _ in range(4)]
        for batch in batches:
            for one, other in zip(batch.result(WAIT_SECONDS), wanted, strict=True):
                assert torch.equal(one.scores, other.scores)
                assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)


@pytest.mark.usefixtures("three_threads")
def test_a_network_is_measured_in_several_threads_unless_it_changes_its_buffers(tmp_path: Path) -> None:
    alone = measure(loaded(tmp_path, Counting()), MemoryMeter("cpu"))
    assert (alone["callers"], alone["inner_threads"]) == (1, None)
    divided = measure(loaded(tmp_path, Convolving()), MemoryMeter("cpu"))
    assert (divided["callers"], divided["inner_threads"]) in [(COUNT, 1), (1, COUNT)]
    assert divided["batch_size"] % (divided["callers"] * divided["piece_size"]) == 0
