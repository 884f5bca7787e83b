"""Networks with random weights that give some confident boxes, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Run = Callable[[], object]  # the network on pictures like those that it will see


def take_statistics(network: nn.Module, run: Run) -> None:
    """Set the statistics of all batch normalisations to those of `run`: random networks fade out otherwise.

    Layers other than those normalisations stay in evaluation.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all runs
        norm.train()
    with torch.no_grad():
        run()
        run()
    network.eval()


def raise_scores(
    layers: Iterable[nn.Module], run: Run, *, wanted: int, channels: slice = slice(None)
) -> None:
    """Scale and shift the outputs `channels` of each layer, so that `wanted` places get a logit above 0.4.

    The channels' logits get a deviation of 1.5. A channel is the second dimension of a convolution's output,
    and the last one of a linear layer's.
    """
    seen: dict[nn.Module, Tensor] = {}
    layers = list(layers)

    def keep(layer: nn.Module, _: object, output: Tensor) -> None:
        seen.setdefault(layer, output.clone())  # of a layer that several levels share, the first

    handles = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        run()
        for layer, output in seen.items():
            places = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
            raw = places.flatten(0, -2)[:, channels] - layer.bias[channels]
            scale = 1.5 / raw.std(0).mean().clamp(min=1e-6)
            middle = raw.mean(0) * scale
            best = (raw * scale - middle).amax(-1)
            shift = best.quantile(1 - min(0.2, wanted / len(best)))
            layer.weight[channels] *= scale
            layer.bias[channels] = 0.4 - shift - middle
    for handle in handles:
        handle.remove()


def sharpen(layer: nn.Module, run: Run, *, groups: int | None = None, background: int = 0) -> None:
    """Scale the logits of `layer`, so that a softmax over them has scores above 0.4 at some places.

    `groups`: how many channels belong to one anchor, if not all. The logit of class `background` is raised.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _layer, _input, output: seen.append(output.clone()))
    with torch.no_grad():
        run()
        handle.remove()
        output = seen[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else seen[0]
        raw = output.flatten(0, -2) - layer.bias
        scale = 3 / raw.std(0).mean().clamp(min=1e-6)
        layer.weight *= scale
        layer.bias.copy_(-raw.mean(0) * scale)
        layer.bias.view(-1, groups or len(layer.bias))[:, background] += 4
