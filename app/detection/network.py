"""A detector made of somebody's network: frames are fitted to it, and its output read as declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from app.detection.declaration import Declaration
from app.detection.detector import Detections
from app.detection.layouts import Candidates, Layout, read_output
from app.errors import ModelFault

# Between batches of different sizes: 0.01 of a score, half a pixel of a box.
ABSOLUTE_TOLERANCE = 0.01
RELATIVE_TOLERANCE = 1e-3


class Network(Protocol):
    """A loaded network, on its device: pictures in, raw output out."""

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that it takes, or None if it takes any."""
        ...

    def run(self, pictures: Tensor) -> Tensor:
        """Return the output for `pictures`, (n, 3, height, width) float32 RGB in [0, 1], on its device."""
        ...


class NetworkDetector:
    """A network with a declaration of what its numbers mean. Fulfils Detector."""

    def __init__(
        self,
        network: Network,
        declaration: Declaration,
        *,
        name: str,
        fingerprint: str,
        device: str,
        batch_size: int,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.device = device
        self.class_names: Sequence[str] = declaration.labels
        self.default_min_score = declaration.min_score
        self.batch_size = network.fixed_batch or batch_size
        self.precision = "float32"
        self._network = network
        self._declaration = declaration
        self._input = declaration.input_size

    @property
    def layout(self) -> Layout:
        return self._declaration.layout

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return self._input.frame_size(width, height)

    def detect(self, frames: Tensor) -> list[Detections]:
        n, height, width, _ = frames.shape
        output = self.output(frames)
        self._check(output, n)
        found = read_output(output, self._declaration.layout, max_overlap=self._declaration.max_overlap)
        self._check_boxes(found)
        boxes = self._input.boxes_to_frame(found.boxes_xyxy, width, height)
        return _split(Candidates(boxes, found.scores, found.class_ids, found.valid))

    def output(self, frames: Tensor) -> Tensor:
        """Return what the network itself puts out for `frames`, unread and unchecked."""
        pictures = self._input.fill(frames, self.device)
        missing = (self._network.fixed_batch or 0) - len(pictures)
        if missing > 0:
            pictures = torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)])
        return self._network.run(pictures)[: len(frames)]

    def _check(self, output: Tensor, frame_count: int) -> None:
        layout, class_count = self._declaration.layout, len(self.class_names)
        shape = tuple(output.shape)
        if shape[:1] != (frame_count,) or not layout.fits(shape, class_count):
            raise ModelFault(
                f"Model {self.name!r} gives {shape} for {frame_count} frames, but layout {layout.value!r} "
                f"with {class_count} labels is {layout.describe(class_count)}. Write the right layout and "
                "labels in framebox.toml."
            )
        if not bool(output.sum().isfinite()):  # one pass: NaN and infinity both survive a sum
            raise ModelFault(f"Model {self.name!r} gives numbers that are not finite.")

    def _check_boxes(self, found: Candidates) -> None:
        is_inverted = (found.boxes_xyxy[..., :2] > found.boxes_xyxy[..., 2:]).any(dim=-1)
        if bool((is_inverted & found.valid).any()):
            raise ModelFault(
                f"Model {self.name!r} gives boxes whose right or bottom edge lies before their left or top "
                f"edge; layout {self._declaration.layout.value!r} in framebox.toml is not its own."
            )


def _split(found: Candidates) -> list[Detections]:
    """Return each frame's boxes, on the CPU, those without area left out."""
    has_area = (found.boxes_xyxy[..., :2] < found.boxes_xyxy[..., 2:]).all(dim=-1)
    kept = (found.valid & has_area).cpu()
    boxes, scores, class_ids = found.boxes_xyxy.cpu(), found.scores.cpu(), found.class_ids.cpu()
    return [
        Detections(boxes[i][kept[i]], scores[i][kept[i]].clamp(0, 1), class_ids[i][kept[i]])
        for i in range(len(kept))
    ]


def check_at_load(detector: NetworkDetector) -> None:
    """Run a picture through the network, twice and in batches of 1 and 2, and compare what comes out.

    Raises ModelFault for a model whose output is not as declared, or not the same each time.
    """
    picture = _golden_picture(*detector.frame_size(1280, 720))
    pair = torch.stack([picture] * min(2, detector.batch_size))
    with torch.inference_mode():
        detector.detect(pair)  # raises if the declaration does not fit
        alone, again, together = (
            _comparable(detector.output(frames), detector.layout)
            for frames in (picture[None], picture[None], pair)
        )
    if not torch.equal(alone, again):
        raise ModelFault(f"Model {detector.name!r} gives other numbers for the same picture each time.")
    if not torch.allclose(alone, together[-1:], atol=ABSOLUTE_TOLERANCE, rtol=RELATIVE_TOLERANCE):
        raise ModelFault(
            f"Model {detector.name!r} gives other numbers in a batch than for one picture alone."
        )


def _comparable(output: Tensor, layout: Layout) -> Tensor:
    """Return what has to be equal: all of it, but where the network sorts its boxes, equals may swap."""
    return output[..., 4] if layout is Layout.END_TO_END else output


def _golden_picture(width: int, height: int) -> Tensor:
    """Return (height, width, 3) uint8: a bright shape and noise on a gradient, the same ever after."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.linspace(0, 160, width).repeat(height, 1)[..., None].repeat(1, 1, 3)
    picture += torch.rand((height, width, 3), generator=generator) * 40
    picture[height // 4 :, width // 3 : width // 2] = torch.tensor([230.0, 60.0, 40.0])
    return picture.to(torch.uint8)
