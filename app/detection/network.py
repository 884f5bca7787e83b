"""A detector made of a network: frames are fitted to its input, and its output is read as declared."""

from __future__ import annotations

import copy
import gc
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import structlog
import torch
from torch import Tensor, nn

from app.detection.detector import Detections, detections_of, is_lack_of_memory, is_out_of_memory
from app.detection.golden import golden_picture
from app.detection.model_files import reason
from app.detection.network_input import NetworkInput, PixelRules, to_network_input
from app.detection.network_output import (
    Candidates,
    Columns,
    Reading,
    describe_output,
    first_tensor,
    read_columns,
    select,
)
from app.detection.precision import Precision
from app.detection.resize import Fitting
from app.errors import ModelFault

# Boxes of a batch whose right or bottom edge lies before their left or top edge.
FEW_INVERTED = 2
MOST_INVERTED = 0.5  # of all

# Between batches of different sizes: 0.01 of a score, half a pixel of a box.
ABSOLUTE_TOLERANCE = 0.01
RELATIVE_TOLERANCE = 1e-3

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Network:
    """A loaded network, on its device: pictures in, raw output out."""

    takes: NetworkInput
    run: Callable[[Tensor], object]  # pictures as `takes` wants them to tensors, in lists, tuples or by name
    metadata: Mapping[str, object] = field(default_factory=dict)  # what its file says about itself
    has_fixed_precision: bool = False  # its file settles what it computes in
    # Whether it has changed nothing in itself so far, so that several threads may run it at a time.
    is_stateless: Callable[[], bool] = lambda: True
    module: nn.Module | None = None  # what `run` computes with, if that is torch
    threads: int | None = None  # of a call; None: as many as torch has in the calling thread
    run_by: str = "torch"  # or onnxruntime


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network, and what its numbers mean: all that a format knows of a model."""

    network: Network
    fitting: Fitting
    pixels: PixelRules
    reading: Reading
    class_names: Sequence[str]
    min_score: float  # for requests that name none
    precision: Precision | None  # the declared one
    batch: int | None = None  # the only batch size that the network takes
    declaration: Mapping[str, Any] = field(default_factory=dict)  # as recognised: plain JSON values


class NetworkDetector:
    """Finds objects with a network, in float32 or in 16 bits. Fulfils Detector."""

    takes_device_frames = True
    reference: NetworkDetector | None = None  # the same network in float32, if this one computes in 16 bits

    def __init__(
        self,
        loaded: LoadedNetwork,
        *,
        name: str,
        fingerprint: str,
        device: str,
        batch_size: int,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.device = device
        self.class_names = loaded.class_names
        self.default_min_score = loaded.min_score
        self.layout = loaded.reading.layout
        dtype = loaded.network.takes.dtype
        # A network that takes bytes does not say what it computes in, and is taken for float32.
        self.precision = "float32" if dtype is torch.uint8 else str(dtype).removeprefix("torch.")
        self.loaded = loaded
        self.call_size = loaded.batch or batch_size  # frames that the network takes at a time, at most
        self.batch_size = self.call_size

    def lowered(self, precision: Precision) -> Self:
        """Return the same network as another model, which computes in 16 bits.

        It does so in the convolutions and matrix products that torch considers fit for it; its weights, its
        input and the reading of its output stay as they are. Not for a network of a fixed precision.
        """
        other = copy.copy(self)
        other.reference = self
        other.precision = precision.value
        other.fingerprint = hashlib.sha256(f"{self.fingerprint} {precision}".encode()).hexdigest()
        return other

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return self.loaded.fitting.frame_size(width, height)

    def detect(self, frames: Tensor) -> list[Detections]:
        """Detect in one call of the network, in this thread. At most `call_size` frames."""
        n, height, width, _ = frames.shape
        found = self.best(self.columns(self.output(frames), n), width, height)
        # Some networks give one now and then, which is dropped; with a wrong reading most are inverted.
        if np.count_nonzero(found.is_inverted) > max(FEW_INVERTED, MOST_INVERTED * len(found.scores)):
            raise inverted_fault(self.name)
        is_unknown = (found.class_ids < 0) | (found.class_ids >= len(self.class_names))
        if is_unknown.any():
            first = self.loaded.reading.first_class
            number = int(found.class_ids[is_unknown][0]) + first
            raise ModelFault(
                f"Model {self.name!r} gives class {number}, but has {len(self.class_names)} labels, "
                f"which are counted from {first}. Write all labels in framebox.toml."
            )
        boxes = self.loaded.fitting.boxes_to_frame(found.boxes_xyxy, width, height)
        has_area = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        return detections_of(
            boxes[has_area],
            np.minimum(found.scores[has_area], np.float32(1)),
            found.class_ids[has_area],
            starts=found.frame_ids[has_area].searchsorted(np.arange(n + 1)),
        )

    def best(self, columns: Columns, width: int, height: int) -> Candidates:
        """Return the best boxes of frames of that size, in pixels of the network's input."""
        placement = self.loaded.fitting.place(width, height)
        return select(columns, self.loaded.reading, (placement.input_width, placement.input_height))

    def output(self, frames: Tensor) -> object:
        """Return the network's raw output for `frames`, and for those that fill up a batch of fixed size."""
        loaded = self.loaded
        takes = loaded.network.takes
        # torch computes faster with the colours of a pixel together; onnxruntime takes them in planes.
        is_together = takes.channels_last or loaded.network.run_by == "torch"
        pictures = loaded.fitting.fill(frames, self.device, channels_last=is_together)
        missing = (loaded.batch or 0) - len(pictures)
        if missing > 0:
            pictures = torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)])
        pictures = to_network_input(pictures, takes, loaded.pixels)
        if self.reference is None:
            return loaded.network.run(pictures)
        # Without the cache, weights are halved layer by layer, not all at once: that saves their memory.
        dtype: torch.dtype = getattr(torch, self.precision)
        with torch.autocast(torch.device(self.device).type, dtype, cache_enabled=False):
            return loaded.network.run(pictures)

    def columns(self, output: object, frame_count: int) -> Columns:
        """Return what `output` holds for the first `frame_count` pictures: any others only fill up the batch.

        Raises ModelFault if it is not as declared, or not finite.
        """
        picture_count = max(frame_count, self.loaded.batch or 0)
        columns = read_columns(output, self.loaded.reading, picture_count)
        if columns is None:
            raise layout_fault(self.name, output, self.loaded.reading, picture_count)
        # One pass over each: NaN and infinity both survive a sum.
        # In float32, because the sum of a float16 output is too large for that.
        total = columns.boxes.sum(dtype=torch.float32) + columns.scores.sum(dtype=torch.float32)
        if not math.isfinite(total.item()):
            raise ModelFault(f"Model {self.name!r} gives numbers that are not finite.{self.advice}")
        return columns.of_first(frame_count)

    @property
    def advice(self) -> str:
        """What to do about a fault that 16 bits may cause; empty in float32."""
        if self.reference is None:
            return ""
        wider = 'precision = "bfloat16" or ' if self.precision == Precision.FLOAT16 else ""
        return f' It computes in {self.precision}: write {wider}precision = "float32" in framebox.toml.'


# ---- checks at load


def run_once(detector: NetworkDetector) -> None:
    """Run a picture through the network, so that it has allocated what it keeps."""
    with torch.inference_mode():
        detector.detect(golden_picture(*detector.frame_size(1280, 720))[None])


def inverted_fault(name: str) -> ModelFault:
    """Return the fault of a network most of whose boxes are inverted."""
    return ModelFault(
        f"Model {name!r} gives boxes whose right or bottom edge lies before their left or top edge; layout, "
        "boxes or outputs in framebox.toml are not its own."
    )


def layout_fault(name: str, output: object, reading: Reading, frame_count: int) -> ModelFault:
    """Return the fault of an output that does not have the layout of `reading`."""
    return ModelFault(
        f"Model {name!r} gives {describe_output(output)} for {frame_count} frames, but layout "
        f"{reading.layout.value!r} with {reading.class_count} labels is "
        f"{reading.layout.describe(reading.class_count, reading.extra_columns)}."
    )


def check_network(detector: NetworkDetector, *, may_economise: bool = True) -> None:
    """Run a picture through the network, twice and in batches of 1 and 2, and compare the results.

    A network for which there is memory for one picture only takes single ones from then on, if it
    `may_economise`. In 16 bits only single pictures are compared: the few bits explain other numbers in a
    batch.

    Raises ModelFault, with advice, for a model that fails, whose output is not as declared, or not the same
    each time.
    """
    count = 1 if detector.reference is not None else min(2, detector.call_size)
    try:
        _check_batches(detector, count)
    except Exception as error:
        is_least = count == 1 or detector.loaded.batch is not None
        if is_least or not may_economise or not is_lack_of_memory(error):
            raise
    else:
        return
    _log.info("model has memory for single frames only", model=detector.name)
    gc.collect()  # what the error's calls held
    detector.call_size = detector.batch_size = 1
    _check_batches(detector, 1)


def _check_batches(detector: NetworkDetector, count: int) -> None:
    """Compare the results for single pictures with those for `count` together."""
    name = detector.name
    picture = golden_picture(*detector.frame_size(1280, 720))
    together = torch.stack([picture] * count)
    with torch.inference_mode():
        fault = _failure(detector, together)
        if fault is not None:
            advice = detector.advice or " Write the input that it was made for in framebox.toml."
            if count > 1 and _failure(detector, picture[None]) is None:
                advice = " It takes one picture at a time: write batch = 1 in framebox.toml."
            raise ModelFault(
                f"Model {name!r} fails on a batch of {count}: {reason(fault)}.{advice}"
            ) from fault
        results = []
        for frames in (picture[None], picture[None], together):
            output = detector.output(frames)
            columns = detector.columns(output, len(frames))
            found = detector.best(columns, frames.shape[2], frames.shape[1])
            if np.count_nonzero(found.is_inverted) > MOST_INVERTED * len(found.scores):
                raise inverted_fault(name)
            dense = first_tensor(output)
            if not detector.layout.is_suppressed and dense is not None:
                results.append(dense[: len(frames)])
            else:  # of sorted boxes only the scores, because equal ones may swap
                results.append(columns.scores.sort(dim=1, descending=True).values)
    single, repeated, last = results[0], results[1], results[2][-1:]
    if not torch.equal(single, repeated):
        raise ModelFault(
            f"Model {name!r} gives other numbers for the same picture each time.{detector.advice}"
        )
    is_alike = single.shape == last.shape and torch.allclose(
        single, last, atol=ABSOLUTE_TOLERANCE, rtol=RELATIVE_TOLERANCE
    )
    if not is_alike:
        raise ModelFault(f"Model {name!r} gives other numbers in a batch than for a single picture.")


def _failure(detector: NetworkDetector, frames: Tensor) -> Exception | None:
    """Return what the network raises. Raises ModelFault for wrong output, and lack of memory as it is."""
    try:
        detector.detect(frames)
    except Exception as error:  # the model's boundary: networks raise what their runtime raises
        if isinstance(error, ModelFault) or is_out_of_memory(error):
            raise
        return error
    return None
