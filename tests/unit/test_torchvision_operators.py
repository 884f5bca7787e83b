"""Suppression as torchvision's operator does it, in scripts that were exported with it."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from exported_networks import HEIGHT, WIDTH
from test_suppression import plain_suppression, random_boxes
from torch import Tensor, nn
from torch import library as operators

from app.detection.model_formats.torchscript import load_torchscript
from app.detection.torchvision_operators import nms, provide_operators
from app.errors import ModelFault


@pytest.mark.parametrize("max_overlap", [0.1, 0.45, 0.7])
@pytest.mark.parametrize("count", [0, 1, 60, 300])
def test_it_keeps_what_the_plain_loop_keeps(count: int, max_overlap: float) -> None:
    boxes = random_boxes(count, count, 150)
    scores = np.random.default_rng(1).permutation(count).astype(np.float32)
    order = np.argsort(-scores)
    wanted = order[plain_suppression(boxes[order], np.zeros(count), max_overlap)]
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), max_overlap)
    assert kept.dtype == torch.int64
    assert kept.tolist() == wanted.tolist()


class Suppressed(nn.Module):
    """Of two equal boxes and one elsewhere, gives those that stay: (n, 2, 6)."""

    def forward(self, pictures: Tensor) -> Tensor:
        boxes = torch.tensor([[10.0, 10, 30, 30], [10, 10, 30, 30], [50, 20, 70, 40]])
        scores = torch.tensor([0.9, 0.8, 0.7])
        kept = torch.ops.torchvision.nms(boxes, scores, 0.5)
        found = torch.cat([boxes, scores[:, None], torch.ones(3, 1)], 1)[kept]
        return found.expand(pictures.shape[0], -1, -1)


def script_of(network: nn.Module) -> bytes:
    provide_operators()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, HEIGHT, WIDTH)), file)
    return file.getvalue()


def test_a_script_with_suppression_runs() -> None:
    network = load_torchscript("model", script_of(Suppressed()), "cpu")
    found = network.run(torch.zeros(1, 3, HEIGHT, WIDTH))
    assert isinstance(found, Tensor)
    assert found[0, :, 4].tolist() == pytest.approx([0.9, 0.7])


class Twice(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        twice: Tensor = torch.ops.torchvision.twice(pictures)
        return twice


def test_another_operator_is_refused_with_what_to_install() -> None:
    provide_operators()
    library = operators.Library("torchvision", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    content = script_of(Twice())
    library._destroy()  # as if another process loaded it
    with pytest.raises(ModelFault, match=r"builtin op: torchvision::twice\. To serve it, pip install torchv"):
        load_torchscript("model", content, "cpu")
