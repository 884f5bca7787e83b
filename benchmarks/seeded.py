"""A drawn video and two networks, all made from a seed: whoever measures need bring nothing."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

SEED = 1
CLASSES = 80
STRIDE = 8  # pixels an anchor, each way

Frame = npt.NDArray[np.uint8]  # (height, width, 3) RGB


def scene(count: int, width: int, height: int) -> Iterator[Frame]:
    """Yield frames of boxes that cross a background, which pans; with grain, as a camera has."""
    random = np.random.default_rng(SEED)
    coarse = random.integers(0, 256, (9, 32, 3), dtype=np.uint8)
    background = cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    boxes = [(random.random(4), random.integers(0, 256, 3)) for _ in range(12)]
    for number in range(count):
        moved = number / max(1, count)
        left = int(moved * width)
        grain = random.integers(0, 7, (height, width, 1), dtype=np.uint8)
        frame: Frame = np.empty((height, width, 3), dtype=np.uint8)
        cv2.add(background[:, left : left + width], np.repeat(grain, 3, axis=2), dst=frame)
        for (x, y, w, pace), colour in boxes:
            x0, y0 = int((x + pace * moved) % 1 * width), int(y * 0.7 * height)
            frame[y0 : y0 + height // 4, x0 : x0 + int((0.03 + 0.1 * w) * width)] = colour
        yield frame


def make_video(path: Path, *, width: int, height: int, gop: int) -> Path:
    """Write `gop` frames of the scene, in H.264, of which the first alone is a keyframe."""
    options = {"preset": "veryfast", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in scene(gop, width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def repeat_video(once: Path, path: Path, times: int) -> Path:
    """Write `once` so many times in a row, its packets as they are, with stamps that go on."""
    with av.open(str(path), "w") as container, av.open(str(once)) as source:
        template = source.streams.video[0]
        assert template.duration is not None
        stream = container.add_stream_from_template(template)
        for number in range(times):
            source.seek(0)
            for packet in source.demux(template):
                if packet.pts is None or packet.dts is None:
                    continue
                packet.pts += number * template.duration
                packet.dts += number * template.duration
                packet.stream = stream
                container.mux(packet)
    return path


class SeededYolo(nn.Module):
    """Five convolutions and a head: (n, 4 + CLASSES, anchors), a few dozen of them worth a look."""

    centres: Tensor  # (2, side / STRIDE, side / STRIDE): x, y

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        place = (torch.arange(side // STRIDE) + 0.5) * STRIDE
        self.register_buffer("centres", torch.stack(torch.meshgrid(place, place, indexing="xy")))
        sizes = [3, channels, 2 * channels, 4 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for depth, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.Conv2d(before, after, 3, stride=1 if depth == 3 else 2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(sizes[-1], 4 + CLASSES, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        raw = self.head(self.body(pictures))
        shift, size = raw[:, :2].tanh(), raw[:, 2:4].sigmoid()
        boxes = [self.centres + STRIDE * shift, STRIDE * (2 + 8 * size)]
        return torch.cat([*boxes, raw[:, 4:].sigmoid()], dim=1).flatten(2)


def make_yolo(folder: Path, *, side: int, channels: int) -> None:
    """Write a model of torch.export whose scores reach over all of [0, 1] on the drawn scene."""
    torch.manual_seed(SEED)
    network = SeededYolo(side, channels).eval()
    picture = _picture(side)
    with torch.no_grad():
        for layer in network.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        assert network.head.bias is not None
        _spread(network.head.weight[4:], network.head.bias[4:], network.head(network.body(picture))[0, 4:])
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(network, (torch.zeros(2, 3, side, side),), dynamic_shapes=dynamic)
    metadata = {"names": {str(number): f"class {number}" for number in range(CLASSES)}, "imgsz": [side, side]}
    folder.mkdir()
    torch.export.save(program, folder / "network.pt2", extra_files={"config.json": json.dumps(metadata)})


def make_rt_detr(folder: Path, *, side: int, is_small: bool) -> None:
    """Write a folder of Hugging Face with RT-DETR on ResNet-50, or on next to nothing."""
    transformers: Any = importlib.import_module("transformers")  # optional, and large

    backbone = None
    shrunk: dict[str, Any] = {}
    if is_small:
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 16, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        widths = ("encoder_hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_model")
        shrunk |= dict.fromkeys(widths, 16) | {"num_queries": 20, "decoder_layers": 2}
        shrunk |= {"encoder_in_channels": [16, 16, 32], "decoder_in_channels": [16, 16, 16]}
        shrunk |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(SEED)
    config = transformers.RTDetrConfig(backbone_config=backbone, num_labels=CLASSES, **shrunk)
    network = transformers.RTDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "class_embed" in name or "score_head" in name:
                weights.normal_(std=0.7)  # as they come, classes hardly differ
        _settle(network, _picture(side))
        head = network.model.decoder.class_embed[-1]
        _spread(head.weight, head.bias, network(pixel_values=_picture(side)).logits[0].T)
    network.save_pretrained(folder)
    processor = {"image_processor_type": "RTDetrImageProcessor", "do_normalize": False}
    settings = processor | {"size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="ascii")


def _picture(side: int) -> Tensor:
    return torch.from_numpy(next(scene(1, side, side))).permute(2, 0, 1)[None] / 255  # (1, 3, side, side)


def _settle(network: nn.Module, picture: Tensor) -> None:
    """Give normalising layers the statistics that they meet, or numbers grow from layer to layer."""

    def take(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        for statistic, value in (("running_mean", torch.mean), ("running_var", torch.var)):
            layer.get_buffer(statistic).copy_(value(given[0], dim=(0, 2, 3)))

    hooks = [
        layer.register_forward_pre_hook(take) for layer in network.modules() if hasattr(layer, "running_var")
    ]
    network(picture)
    for hook in hooks:
        hook.remove()


def _spread(weight: Tensor, bias: Tensor, logits: Tensor) -> None:
    """Change a head in place, so that the best score is 0.95 where it is made of `logits`, and few matter.

    Those are (classes, …); the 60th box, or the middle one of less than 120, gets 0.05.
    """
    ranked = logits.amax(dim=0).flatten().sort(descending=True).values
    last = ranked[min(59, len(ranked) // 2)]
    highest = math.log(0.95 / 0.05)
    factor = 2 * highest / (ranked[0] - last)
    weight *= factor
    bias.copy_(bias * factor + highest - ranked[0] * factor)
