"""Networks of torch as ONNX files: what onnxruntime then computes, and what is noticed where it differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported_networks import HEIGHT, WIDTH, Detr, as_pt2, as_torchscript
from test_side_by_side import Convolving
from torch import Tensor, nn

from app.detection.conversion import CannotConvert, convert, difference
from app.detection.model_formats.onnx import load_onnx
from app.detection.network import Network, NetworkDetector
from app.detection.network_input import NetworkInput
from app.detection.registry import load_detector

PICTURES = torch.rand((2, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))


def network_of(module: nn.Module) -> Network:
    return Network(NetworkInput(), module.eval(), module=module)


def assert_equal(converted: Network, original: Network, pictures: Tensor, names: list[str]) -> None:
    with torch.inference_mode():
        found, wanted = converted.run(pictures), original.run(pictures)
    assert isinstance(found, dict)
    assert list(found) == names
    if isinstance(wanted, dict):
        wanted = tuple(wanted.values())
    for one, other in zip(found.values(), wanted if isinstance(wanted, tuple) else [wanted], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class Named(Convolving):
    """Gives its output a name."""

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"rows": super().forward(pictures)}


class OneByOne(Convolving):
    """Looks at each picture in a loop, whose length an exporter fixes."""

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.cat([super(OneByOne, self).forward(picture[None]) for picture in pictures])


class Asserting(Convolving):
    """Checks its own numbers."""

    def forward(self, pictures: Tensor) -> Tensor:
        torch._assert_async((pictures >= 0).all())
        return super().forward(pictures)


class Nested(Convolving):
    def forward(self, pictures: Tensor) -> list[list[Tensor]]:  # type: ignore[override]
        return [[super().forward(pictures)]]


@pytest.mark.parametrize(
    ("module", "names"),
    [(Convolving(), ["0"]), (Detr(), ["0", "1"]), (Named(), ["rows"]), (Asserting(), ["0"])],
    ids=lambda value: type(value).__name__,
)
def test_a_converted_network_gives_the_same_for_any_number_of_pictures(
    module: nn.Module, names: list[str]
) -> None:
    original = network_of(module)
    converted = load_onnx("converted", convert(original, PICTURES), "cpu")
    assert (converted.takes.batch, converted.takes.height, converted.takes.width) == (None, HEIGHT, WIDTH)
    for count in (1, 2, 5):
        assert_equal(converted, original, PICTURES[:1].expand(count, -1, -1, -1).contiguous(), names)


def test_a_network_of_varying_size_stays_one() -> None:
    original = network_of(Convolving())
    converted = load_onnx("converted", convert(original, PICTURES, sizes_vary=True), "cpu")
    assert_equal(converted, original, torch.rand((3, 3, 80, 50)), ["0"])


def test_a_network_whose_batch_an_exporter_fixes_takes_one_picture_at_a_time() -> None:
    original = network_of(OneByOne())
    converted = load_onnx("converted", convert(original, PICTURES), "cpu")
    assert converted.takes.batch == 1
    assert_equal(converted, original, PICTURES[1:], ["0"])


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Network(NetworkInput(), lambda pictures: pictures), "no network of torch"),
        (network_of(Nested()), "not a tensor"),
        (network_of(OneByOne()), "."),
    ],
    ids=["not of torch", "nested output", "fixed batch and varying size"],
)
def test_what_cannot_be_converted_says_why(network: Network, why: str) -> None:
    with pytest.raises(CannotConvert, match=why):
        convert(network, PICTURES, sizes_vary=True)


def loaded(folder: Path, file: str, content: bytes) -> NetworkDetector:
    (folder / file).write_bytes(content)
    detector = load_detector(file.partition(".")[0], device="cpu", models_folder=folder)
    assert isinstance(detector, NetworkDetector)
    return detector


def as_onnx(detector: NetworkDetector) -> NetworkDetector:
    network = load_onnx("converted", convert(detector.loaded.network, PICTURES), "cpu")
    return NetworkDetector(
        replace(detector.loaded, network=network, batch=network.takes.batch),
        name="converted",
        fingerprint="",
        device="cpu",
        batch_size=8,
    )


@pytest.mark.parametrize("kind", ["pt2", "torchscript"])
def test_a_converted_model_finds_the_same_boxes(tmp_path: Path, kind: str) -> None:
    write = {"pt2": as_pt2, "torchscript": as_torchscript}[kind]
    original = loaded(tmp_path, f"model.{kind}", write(Convolving()))
    assert difference(as_onnx(original), original, (1, 2, 3)) is None


class Brighter(Convolving):
    """Its scores are a little higher."""

    def brightness(self, pictures: Tensor) -> Tensor:
        return super().brightness(pictures) + 0.01


class Moved(Convolving):
    """Its box lies two pixels further right."""

    def box(self, count: int) -> Tensor:
        return super().box(count) + torch.tensor([2.0, 0, 0, 0])


@pytest.mark.parametrize(
    ("module", "what"), [(Brighter(), "scores differ by 0.01"), (Moved(), "a box is off by 0.05")]
)
def test_other_boxes_are_noticed(tmp_path: Path, module: nn.Module, what: str) -> None:
    original = loaded(tmp_path, "model.pt2", as_pt2(Convolving()))
    other = loaded(tmp_path, "other.pt2", as_pt2(module))
    found = difference(as_onnx(other), original, (1, 2))
    assert found is not None
    assert found.startswith(what)
