"""A detector made of a network: frames are fitted to its input, and its output is read as declared."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from app.detection.detector import Detections
from app.detection.golden import golden_picture
from app.detection.network_input import NetworkInput, PixelRules, to_network_input
from app.detection.network_output import (
    Columns,
    Layout,
    Reading,
    describe_output,
    first_tensor,
    fitting_layouts,
    read_columns,
    select,
)
from app.detection.precision import Precision
from app.detection.resize import Fitting
from app.detection.side_by_side import SideBySide
from app.errors import ModelFault

# On a CPU, whose threads divide a batch among them.
FRAMES_A_THREAD = 4
LARGEST_BATCH = 64

# Between batches of different sizes: 0.01 of a score, half a pixel of a box.
ABSOLUTE_TOLERANCE = 0.01
RELATIVE_TOLERANCE = 1e-3


class Network(Protocol):
    """A loaded network, on its device: pictures in, raw output out."""

    @property
    def takes(self) -> NetworkInput: ...

    @property
    def is_stateless(self) -> bool:
        """Whether it has changed nothing in itself so far, so that several threads may run it at a time."""
        ...

    def run(self, pictures: Tensor) -> object:
        """Return the output for `pictures`, as `takes` wants them: tensors, in lists, tuples or by name."""
        ...


@dataclass(frozen=True, slots=True)
class AutocastNetwork:
    """A torch network in 16 bits: the convolutions and matrix products that torch considers fit for it.

    Its weights, its input and the reading of its output stay as they are. Fulfils Network.
    """

    network: Network
    device: torch.device
    precision: Precision

    @property
    def takes(self) -> NetworkInput:
        return self.network.takes

    @property
    def is_stateless(self) -> bool:
        return self.network.is_stateless

    def run(self, pictures: Tensor) -> object:
        # Without the cache, weights are halved layer by layer, not all at once: that saves their memory.
        with torch.autocast(self.device.type, self.precision.dtype, cache_enabled=False):
            return self.network.run(pictures)


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What goes into a network and what comes out of it means: all that a declaration says but its labels."""

    fitting: Fitting
    pixels: PixelRules
    reading: Reading
    batch: int | None  # the only batch size that the network takes


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """All that a format knows of a model whose network it has loaded."""

    network: Network
    rules: NetworkRules
    class_names: Sequence[str]
    min_score: float  # where a request names none
    precision: Precision | None  # the declared one


class NetworkDetector:
    """A network, and the rules for what its numbers mean. Fulfils Detector."""

    takes_device_frames = True
    reference: NetworkDetector | None = None  # the same network in float32, if this one computes in 16 bits

    def __init__(
        self,
        network: Network,
        rules: NetworkRules,
        *,
        name: str,
        fingerprint: str,
        class_names: Sequence[str],
        default_min_score: float,
        device: str,
        batch_size: int,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.device = device
        self.class_names = class_names
        self.default_min_score = default_min_score
        dtype = network.takes.dtype
        # A network that takes bytes does not say what it computes in, and is taken for float32.
        self.precision = "float32" if dtype is torch.uint8 else str(dtype).removeprefix("torch.")
        self._network = network
        self._rules = rules
        self._threads: SideBySide | None = None
        self.call_size = rules.batch or batch_size  # frames that the network takes at a time, at most
        self.batch_size = self.call_size

    def use_threads(self) -> None:
        """Divide batches among threads on a CPU, if the network allows it. Called once it has run."""
        if self.device != "cpu" or not self._network.is_stateless:
            return
        self._threads = SideBySide(f"model {self.name}")
        if self._rules.batch is not None:
            self.batch_size = self._rules.batch * self._threads.count
        else:
            self.batch_size = max(self.call_size, min(LARGEST_BATCH, FRAMES_A_THREAD * self._threads.count))

    @property
    def layout(self) -> Layout:
        return self._rules.reading.layout

    def lowered(self, precision: Precision) -> Self:
        """Return the same network as another model, which computes in 16 bits. Only for a torch network."""
        other = copy.copy(self)
        other.reference = self
        other.precision = precision.value
        other.fingerprint = hashlib.sha256(f"{self.fingerprint} {precision}".encode()).hexdigest()
        other._network = AutocastNetwork(self._network, torch.device(self.device), precision)  # noqa: SLF001 - our own
        return other

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return self._rules.fitting.frame_size(width, height)

    def detect(self, frames: Tensor) -> list[Detections]:
        if self._threads is None:
            return self.detect_together(frames)
        least = 1 if self._rules.batch is None else self._rules.batch  # smaller parts would be padded
        count = min(self._threads.count, -(-len(frames) // least))
        parts = frames.tensor_split(count)
        return [found for part in self._threads.run(self.detect_together, parts) for found in part]

    def detect_together(self, frames: Tensor) -> list[Detections]:
        """Detect in one call of the network, in this thread. At most `call_size` frames."""
        n, height, width, _ = frames.shape
        columns = self.columns(self.output(frames), n)
        placement = self._rules.fitting.place(width, height)
        found = select(columns, self._rules.reading, (placement.input_width, placement.input_height))
        is_inverted = (found.boxes_xyxy[..., :2] > found.boxes_xyxy[..., 2:]).any(dim=-1)
        if bool((is_inverted & found.valid).any()):
            raise ModelFault(
                f"Model {self.name!r} gives boxes whose right or bottom edge lies before their left or top "
                f"edge; layout {self.layout.value!r} or boxes in framebox.toml is not its own."
            )
        is_unknown = (found.class_ids < 0) | (found.class_ids >= len(self.class_names))
        if bool((is_unknown & found.valid).any()):
            classes = found.class_ids[is_unknown & found.valid]
            raise ModelFault(
                f"Model {self.name!r} gives class {int(classes[0])}, but has {len(self.class_names)} labels, "
                "which are counted from 0. Write all labels in framebox.toml."
            )
        boxes = self._rules.fitting.boxes_to_frame(found.boxes_xyxy, width, height)
        has_area = (boxes[..., :2] < boxes[..., 2:]).all(dim=-1)
        kept = (found.valid & has_area).cpu()
        boxes, scores, class_ids = boxes.cpu(), found.scores.cpu(), found.class_ids.cpu()
        return [
            Detections(boxes[i][kept[i]], scores[i][kept[i]].clamp(0, 1), class_ids[i][kept[i]])
            for i in range(n)
        ]

    def output(self, frames: Tensor) -> object:
        """Return what the network itself returns for `frames`, unread and unchecked."""
        pictures = self._rules.fitting.fill(frames, self.device)
        missing = (self._rules.batch or 0) - len(pictures)
        if missing > 0:
            pictures = torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)])
        output = self._network.run(to_network_input(pictures, self._network.takes, self._rules.pixels))
        return _first_pictures(output, len(frames)) if missing > 0 else output

    def columns(self, output: object, frame_count: int) -> Columns:
        """Return what `output` holds. Raises ModelFault if it is not as declared, or not finite."""
        columns = read_columns(output, self._rules.reading, frame_count)
        if columns is None:
            class_count = len(self.class_names)
            fitting = [layout.value for layout in fitting_layouts(output, class_count, frame_count)]
            advice = "Write the right layout and labels in framebox.toml"
            first = first_tensor(output)
            if fitting:
                advice += f"; by its shape it could be {' or '.join(map(repr, fitting))}"
            elif frame_count > 1 and first is not None and first.shape[:1] == (1,):
                advice = "If it takes one picture at a time, write batch = 1 in framebox.toml"
            raise ModelFault(
                f"Model {self.name!r} gives {describe_output(output)} for {frame_count} frames, but layout "
                f"{self.layout.value!r} with {class_count} labels is {self.layout.describe(class_count)}. "
                f"{advice}."
            )
        # One pass over each: NaN and infinity both survive a sum.
        if not bool((columns.boxes.sum() + columns.scores.sum()).isfinite()):
            raise ModelFault(f"Model {self.name!r} gives numbers that are not finite.{self.advice}")
        return columns

    @property
    def advice(self) -> str:
        """What to do about a fault that 16 bits may cause; empty in float32."""
        if self.reference is None:
            return ""
        wider = 'precision = "bfloat16" or ' if self.precision == Precision.FLOAT16 else ""
        return f' It computes in {self.precision}: write {wider}precision = "float32" in framebox.toml.'


def _first_pictures(output: object, count: int) -> object:
    """Return `output` for its first `count` pictures only: the others pad the batch."""
    if isinstance(output, Tensor):
        return output[:count]
    if isinstance(output, Mapping):
        return {name: _first_pictures(value, count) for name, value in output.items()}
    if isinstance(output, list) and output and all(isinstance(value, Mapping) for value in output):
        return output[:count]  # one a frame
    if isinstance(output, list | tuple):
        return type(output)(_first_pictures(value, count) for value in output)
    return output


# ---- checks at load


def check_at_load(detector: NetworkDetector) -> None:
    """Run a picture through the network, twice and in batches of 1 and 2, and compare the results.

    Raises ModelFault for a model that fails, whose output is not as declared, or not the same each time.
    """
    picture = golden_picture(*detector.frame_size(1280, 720))
    pair = torch.stack([picture] * min(2, detector.call_size))
    with torch.inference_mode():
        fault = _failure(detector, pair)
        if fault is not None:
            advice = "Write the input that it was made for in framebox.toml"
            if len(pair) > 1 and _failure(detector, picture[None]) is None:
                advice = "It takes one picture at a time: write batch = 1 in framebox.toml"
            raise ModelFault(
                f"Model {detector.name!r} fails on a batch of {len(pair)}: {reason(fault)}. {advice}."
            ) from fault
        alone, again, together = (
            _comparable(detector, frames) for frames in (picture[None], picture[None], pair)
        )
    if not torch.equal(alone, again):
        raise ModelFault(f"Model {detector.name!r} gives other numbers for the same picture each time.")
    together = together[-1:]
    is_alike = alone.shape == together.shape and torch.allclose(
        alone, together, atol=ABSOLUTE_TOLERANCE, rtol=RELATIVE_TOLERANCE
    )
    if not is_alike:
        raise ModelFault(
            f"Model {detector.name!r} gives other numbers in a batch than for one picture alone."
        )


def check_lowered(detector: NetworkDetector) -> None:
    """Run a picture, in 16 bits, through a network that passed `check_at_load` in float32.

    Raises ModelFault, with advice, if it fails, or gives other numbers each time. Slightly other numbers in
    a batch are accepted: the few bits explain them.
    """
    picture = golden_picture(*detector.frame_size(1280, 720))[None]
    with torch.inference_mode():
        fault = _failure(detector, picture)
        if fault is not None:
            raise ModelFault(f"Model {detector.name!r} fails: {reason(fault)}.{detector.advice}") from fault
        alone, again = (_comparable(detector, picture) for _ in range(2))
    if not torch.equal(alone, again):
        raise ModelFault(
            f"Model {detector.name!r} gives other numbers for the same picture each time.{detector.advice}"
        )


def _failure(detector: NetworkDetector, frames: Tensor) -> Exception | None:
    """Return what the network raises. Raises ModelFault for wrong output, and lack of memory as it is."""
    try:
        detector.detect_together(frames)
    except (ModelFault, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - the model's boundary: networks raise what their runtime raises
        return error
    return None


def reason(error: Exception) -> str:
    """Return the class of an error that a model's runtime raised, and the last line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1][:200].rstrip(".") if lines else ""
    return f"{type(error).__name__}: {last}" if last else type(error).__name__


def _comparable(detector: NetworkDetector, frames: Tensor) -> Tensor:
    """Return a dense output whole; of sorted boxes only the scores, because equal ones may swap."""
    output = detector.output(frames)
    columns = detector.columns(output, len(frames))
    dense = first_tensor(output)
    if detector.layout in (Layout.YOLO, Layout.YOLO_OBJECTNESS) and dense is not None:
        return dense
    return columns.scores.sort(dim=1, descending=True).values
