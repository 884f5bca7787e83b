"""Small networks with known output, in every format: one bright box in the middle of a 96 × 64 picture."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEIGHT = 96, 64
BOX = (28.0, 22.0, 68.0, 42.0)  # left, top, right, bottom
METADATA = {"names": {"0": "dark", "1": "bright"}, "imgsz": [HEIGHT, WIDTH], "task": "detect"}


class _Bright(nn.Module):
    """Looks at how bright a picture is; heads make an output of it. Takes (n, 3, h, w), any dtype."""

    def brightness(self, pictures: Tensor) -> Tensor:
        return pictures.float().mean(dim=(1, 2, 3))  # (n,)

    def box(self, count: int) -> Tensor:
        return torch.tensor([48.0, 32.0, 40.0, 20.0]).expand(count, 4)


class Yolo(_Bright):
    """(n, 4 + 2, 2 anchors), the second of them empty."""

    def forward(self, pictures: Tensor) -> Tensor:
        bright = self.brightness(pictures)
        first = torch.cat([self.box(pictures.shape[0]), torch.stack([1 - bright, bright], dim=1)], dim=1)
        return torch.stack([first, torch.zeros_like(first)], dim=2)


class YoloObjectness(_Bright):
    """(n, 2 anchors, 5 + 2)"""

    def forward(self, pictures: Tensor) -> Tensor:
        bright = self.brightness(pictures)
        scores = torch.stack([bright, torch.zeros_like(bright), torch.ones_like(bright)], dim=1)
        first = torch.cat([self.box(pictures.shape[0]), scores], dim=1)
        return torch.stack([first, torch.zeros_like(first)], dim=1)


class EndToEnd(_Bright):
    """(n, 2 boxes, 6)"""

    def forward(self, pictures: Tensor) -> Tensor:
        bright = self.brightness(pictures)[:, None]
        corners = torch.tensor(BOX).expand(pictures.shape[0], 4)
        first = torch.cat([corners, bright, torch.ones_like(bright)], dim=1)
        return torch.stack([first, torch.zeros_like(first)], dim=1)


class Detr(_Bright):
    """Logits (n, 2, 2 + 1), "no object" last, and boxes (n, 2, 4) as fractions."""

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        bright = self.brightness(pictures)
        first = torch.stack([torch.full_like(bright, 1e-6), bright, 1 - bright], dim=1).log()
        nothing = torch.tensor([-9.0, -9.0, 9.0]).expand_as(first)
        return torch.stack([first, nothing], dim=1), self.fractions(pictures.shape[0])

    def fractions(self, count: int) -> Tensor:
        box = torch.tensor([0.5, 0.5, 40 / WIDTH, 20 / HEIGHT]).expand(count, 4)
        return torch.stack([box, box], dim=1)


class DetrSigmoid(Detr):
    """Logits (n, 2, 2), and boxes as `Detr` has them."""

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        bright = self.brightness(pictures)
        first = torch.stack([torch.full_like(bright, -9.0), torch.logit(bright)], dim=1)
        return torch.stack([first, torch.full_like(first, -9.0)], dim=1), self.fractions(pictures.shape[0])


class Blocks(nn.Module):
    """Finds red blocks of 16 pixels: each cell of three grids has a box, whose score is how red the cell is.

    Of two classes, all are of the second. `head` makes an output of boxes, scores and cells.
    """

    strides = (8, 16, 32)

    def __init__(
        self,
        head: Callable[[BlockBoxes], Any],
        *,
        width: int = WIDTH,
        height: int = HEIGHT,
        red: Callable[[Tensor], Tensor] = lambda pictures: pictures[:, 0],
    ) -> None:
        super().__init__()
        self.head, self.red = head, red
        self.width, self.height = width, height
        cells, sizes = [], []
        for stride in self.strides:
            rows, columns = torch.arange(height // stride), torch.arange(width // stride)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            cells.append(torch.stack([x, y], dim=-1).reshape(-1, 2).float())
            sizes.append(torch.full((len(cells[-1]), 1), float(stride)))
        self.cells, self.sizes = torch.cat(cells), torch.cat(sizes)

    def forward(self, pictures: Tensor, *further: Tensor) -> Any:
        red = self.red(pictures)[:, None].float()
        weights = {8: 0.2, 16: 1.0, 32: 0.2}  # the middle grid finds the block
        scores = torch.cat(
            [weights[stride] * nn.functional.avg_pool2d(red, stride).flatten(1) for stride in self.strides], 1
        )
        output = self.head(BlockBoxes(self, scores))
        for tensor in further:  # an exporter drops inputs that nothing uses
            output = (output[0] + 0 * tensor.sum(), *output[1:])
        return output


class BlockBoxes:
    """What the heads of `Blocks` make their outputs of; A cells, the best 20 of them in `top…`."""

    def __init__(self, network: Blocks, scores: Tensor) -> None:
        self.scores = scores.clamp(0.001, 0.999)  # (n, A)
        n = scores.shape[0]
        self.unit = torch.tensor([network.width, network.height] * 2, dtype=torch.float32)
        self.offsets = torch.full((n, len(network.cells), 2), 0.5)
        sides = torch.tensor([20.0, 12.0]) / 16
        self.log_sizes = sides.log().expand(n, len(network.cells), 2)
        centres = (network.cells + 0.5) * network.sizes
        self.centre_sizes = torch.cat([centres, sides * network.sizes], 1).expand(n, -1, 4)  # pixels
        self.corners = torch.cat(
            [centres - sides * network.sizes / 2, centres + sides * network.sizes / 2], 1
        ).expand(n, -1, 4)
        self.top_scores, places = self.scores.topk(20, dim=1)
        self.top_classes = torch.ones_like(places)
        self.top_corners = self.corners.gather(1, places[..., None].expand(-1, -1, 4))
        self.top_centre_sizes = self.centre_sizes.gather(1, places[..., None].expand(-1, -1, 4))

    def of_two(self, scores: Tensor) -> Tensor:
        """Scores of both classes: (n, k) to (n, k, 2)."""
        return torch.stack([scores * 0.1, scores], dim=-1)


class MadeOnCpu(nn.Module):
    """No detector: a script that makes tensors on the CPU by itself, in a branch and in a function."""

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[0] > 1:
            return _moved_to_cpu(pictures)
        return pictures + torch.zeros(1, device=torch.device("cpu"))


def _moved_to_cpu(pictures: Tensor) -> Tensor:
    return pictures.to(torch.device("cpu")) + torch.ones(1, device=torch.device("cpu"))


class Dictionaries(_Bright):
    """A dictionary a frame, with one box."""

    def forward(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        bright = self.brightness(pictures)
        return [
            {
                "boxes": torch.tensor([[28.0, 22.0, 68.0, 42.0]]),  # TorchScript knows no BOX
                "labels": torch.tensor([1]),
                "scores": bright[number : number + 1],
            }
            for number in range(pictures.shape[0])
        ]


class OneDictionary(_Bright):
    """Boxes, labels and scores of a single frame: how a network of dictionaries looks in ONNX."""

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor([BOX]) + 0 * pictures.float().sum(), torch.tensor([1]), self.brightness(pictures)


class TakingBytes(Yolo):
    """Takes uint8 from 0 to 255 and normalises by itself."""

    def brightness(self, pictures: Tensor) -> Tensor:
        return super().brightness(pictures) / 255


def example(batch: int, dtype: torch.dtype, *, channels_last: bool = False) -> Tensor:
    shape = (batch, HEIGHT, WIDTH, 3) if channels_last else (batch, 3, HEIGHT, WIDTH)
    return torch.zeros(shape, dtype=dtype)


def as_pt2(
    network: nn.Module,
    *,
    metadata: Mapping[str, Any] | None = METADATA,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> bytes:
    """`batch`: the only one that it takes, None for any."""
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=64)},)
    pictures = example(batch or 2, dtype, channels_last=channels_last)
    program = torch.export.export(network.eval(), (pictures,), dynamic_shapes=dynamic)
    file = io.BytesIO()
    torch.export.save(
        program, file, extra_files={} if metadata is None else {"config.json": json.dumps(metadata)}
    )
    return file.getvalue()


def as_torchscript(network: nn.Module, *, metadata: Mapping[str, Any] | None = METADATA) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        if isinstance(network, Dictionaries | MadeOnCpu):
            script = torch.jit.script(network.eval())
        else:  # as exporters do
            script = torch.jit.trace(network.eval(), example(2, torch.float32))
        extra = {} if metadata is None else {"config.txt": json.dumps(metadata)}
        torch.jit.save(script, file, _extra_files=extra)
    return file.getvalue()


def as_onnx(
    network: nn.Module,
    output_names: tuple[str, ...] = ("output0",),
    *,
    metadata: Mapping[str, Any] | None = METADATA,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    inputs: Sequence[Tensor] = (),
    input_names: Sequence[str] = ("images",),
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """`inputs`: examples of them; without, pictures as the other arguments say."""
    import onnx  # noqa: PLC0415 - half a second that other tests do without

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and tells what it traces
        torch.onnx.export(
            network.eval(),
            tuple(inputs) or (example(batch or 2, dtype, channels_last=channels_last),),
            file,  # type: ignore[arg-type]  # the exporter without dynamo writes to files too
            dynamo=False,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes=dynamic_axes or (None if batch else {"images": {0: "batch"}}),
        )
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, {key: str(value) for key, value in (metadata or {}).items()})
    return bytes(model.SerializeToString())
