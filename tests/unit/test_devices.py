"""Which devices models are held on, and what is said of those that cannot be used."""

from __future__ import annotations

import pytest
import torch

from app.detection.devices import UnusableDevice, choose_devices, make_ready, memory_bytes, sticking_fault


def have(monkeypatch: pytest.MonkeyPatch, *makes: str) -> None:
    """Let torch find CUDA devices of these makes."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(makes))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: makes[int(name.partition(":")[2])])


@pytest.mark.parametrize(
    ("makes", "named", "chosen"),
    [
        ((), (), ("cpu",)),
        ((), ("cpu",), ("cpu",)),
        (("Large",), (), ("cuda:0",)),
        (("Large",), ("cpu",), ("cpu",)),
        (("Large",), ("cuda",), ("cuda:0",)),
        (("Large", "Large"), (), ("cuda:0", "cuda:1")),
        (("Large", "Large"), ("cuda:1",), ("cuda:1",)),
        (("Large", "Small", "Large"), (), ("cuda:0", "cuda:2")),
        (("Large", "Small"), ("cuda:1",), ("cuda:1",)),
    ],
)
def test_the_devices_chosen_are_of_one_make(
    monkeypatch: pytest.MonkeyPatch, makes: tuple[str, ...], named: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    have(monkeypatch, *makes)
    assert choose_devices(named) == chosen


@pytest.mark.parametrize(
    ("makes", "named", "told"),
    [
        ((), ("cuda:0",), r"there is no device 'cuda:0'; torch .* finds cpu here"),
        (("Large",), ("cuda:1",), r"there is no device 'cuda:1'; torch .* finds cpu, cuda:0 here"),
        (("Large",), ("gpu",), "there is no device 'gpu'"),
        (("Large",), ("cuda:0", "cuda"), "cuda:0 is named twice"),
        (("Large",), ("cpu", "cuda:0"), r"cpu \(cpu\) and cuda:0 \(Large\) round differently"),
        (
            ("Large", "Small"),
            ("cuda:0", "cuda:1"),
            r"cuda:0 \(Large\) and cuda:1 \(Small\) round differently",
        ),
    ],
)
def test_devices_that_cannot_be_used_are_told(
    monkeypatch: pytest.MonkeyPatch, makes: tuple[str, ...], named: tuple[str, ...], told: str
) -> None:
    have(monkeypatch, *makes)
    with pytest.raises(UnusableDevice, match=told):
        choose_devices(named)


def test_a_cuda_device_that_cannot_compute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    have(monkeypatch, "Old")
    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(UnusableDevice, match=r"cuda:0 \(Old\) fails: no kernel image is available"):
        make_ready("cuda:0")


def test_a_cuda_device_is_made_ready(cuda: str) -> None:
    assert choose_devices([cuda]) == (cuda,)
    make_ready(cuda)
    assert sticking_fault(cuda) is None
    total = memory_bytes(cuda)
    assert total is not None
    assert total > 1e9


def test_float32_on_a_gpu_has_all_its_bits(cuda: str) -> None:
    make_ready(cuda)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn((2, 64, 32, 32), generator=generator)
    weights = torch.randn((64, 64, 3, 3), generator=generator)
    wanted = torch.nn.functional.conv2d(pictures.double(), weights.double())
    found = torch.nn.functional.conv2d(pictures.to(cuda), weights.to(cuda)).double().cpu()
    assert (found - wanted).abs().max() < 1e-3  # float32 is off by 4e-5 on a CPU, and TF32 by 3e-2


def test_the_cpu_is_ready_and_has_no_memory_of_its_own() -> None:
    make_ready("cpu")
    assert sticking_fault("cpu") is None
    assert memory_bytes("cpu") is None
