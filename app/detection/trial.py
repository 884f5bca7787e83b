"""The trial of a model: it is loaded, checked and measured in a process of its own.

What crashes in native code, hangs, or takes all memory ends its trial and nothing else. A host loads only
what has passed, and only into memory that is free.
"""

from __future__ import annotations

import re
from dataclasses import replace

import structlog
import torch

from app.detection.conversion import CannotConvert, convert, difference
from app.detection.detector import is_lack_of_memory
from app.detection.golden import golden_scenes
from app.detection.measuring import (
    SHARED_GAIN,
    MemoryCost,
    MemoryMeter,
    ModelProfile,
    arrangement_of,
    is_faster,
    measure,
    speed_ratio,
)
from app.detection.model_facts import Refusal, Verdict
from app.detection.model_files import ModelContent, file_marks, is_of_the_machine, network_bytes, reason
from app.detection.model_formats.onnx import load_onnx
from app.detection.model_pool import ModelBudget
from app.detection.network import NetworkDetector, check_network
from app.detection.network_input import to_network_input
from app.detection.precision import Precision
from app.detection.registry import BATCH_SIZE_CPU, Tried, check_model, describe_detector, load_model
from app.errors import FrameboxError, ModelFault
from app.memory import large_blocks_apart

# In the messages of torch and onnxruntime: "you tried to allocate 128 bytes", "Tried to allocate 2.00 GiB".
_REQUESTED = re.compile(r"(?:allocate|size|allocation of):? ([\d.]+\d)(?: (KiB|MiB|GiB))?")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

_log = structlog.get_logger(__name__)


class TooLarge(Exception):
    """A model found less memory than it needs."""

    def __init__(self, needed: MemoryCost) -> None:
        super().__init__(needed)
        self.needed = needed  # at least


def try_model(
    content: ModelContent,
    *,
    device: str,
    precision: Precision,
    budget: ModelBudget,
    runtime: str,
    tried: Tried | None = None,
    may_economise: bool = True,
) -> Verdict:
    """Load, check and measure a model of the folder: seconds to minutes.

    A model that `may_economise` runs fewer frames at a time if there is no memory for more.

    Raises TooLarge, and ModelFault if its files cannot be read for a reason that may pass.

    `budget` is what a host has for models. `runtime`: see `describe_runtime`. With `tried`, what an earlier
    trial has found out is not found out again.
    """
    meter = MemoryMeter(device)
    try:
        with large_blocks_apart():
            detector = load_model(content, device=device, precision=precision, tried=tried)
            loading = meter.cost()
            if tried is None:  # in larger batches than a host begins with
                meter.begin()
                check_model(detector, may_economise=may_economise)
        profile = measure(detector, meter, loading, may_economise=may_economise)
        threads = torch.get_num_threads() if device == "cpu" else 1
        if threads > 1 and isinstance(detector, NetworkDetector) and detector.loaded.network.threads == 1:
            # How many threads share a call is fixed when such a network is loaded.
            onnx = None if tried is None else tried.onnx
            known = Tried(detector.loaded.declaration, onnx)
            del detector
            meter.begin()
            sharing = replace(known, threads=threads)
            detector = load_model(content, device=device, precision=precision, tried=sharing)
            shared = measure(detector, meter)
            try:
                divided_detector = load_model(content, device=device, precision=precision, tried=known)
                gain = speed_ratio(
                    (detector, arrangement_of(shared)), (divided_detector, arrangement_of(profile))
                )
            except Exception as error:
                if not is_lack_of_memory(error):
                    raise
                gain = shared["frames_per_second"] / profile["frames_per_second"]  # both do not fit
            if gain > SHARED_GAIN:
                profile = shared
        facts = describe_detector(detector, profile, runtime)
    except BaseException as error:
        if is_lack_of_memory(error):
            _log.warning("model found no memory", exc_info=error, model=content.name)
            raise TooLarge(_needed(meter, error, network_bytes(file_marks(content.path)))) from None
        if isinstance(error, ModelFault) and is_of_the_machine(error):
            raise
        if isinstance(error, FrameboxError):
            return refused(content.name, error)
        _log.error("model failed in its trial", exc_info=error, model=content.name)
        cause = reason(error) if isinstance(error, Exception) else type(error).__name__
        return refused(content.name, ModelFault(f"Model {content.name!r} cannot be used: {cause}."))
    cost = cost_of(profile)
    if not budget.takes(cost):
        raise TooLarge(cost)
    declaration = dict(detector.loaded.declaration) if isinstance(detector, NetworkDetector) else {}
    return Verdict(name=content.name, facts=facts, profile=dict(profile), declaration=declaration)


def convert_model(content: ModelContent, verdict: Verdict, precision: Precision) -> bytes | None:
    """Return a model as an ONNX file, if onnxruntime finds the same boxes and is faster; else None.

    `verdict` is of its first trial, on the CPU. Raises TooLarge.
    """
    meter = MemoryMeter("cpu")
    try:
        original = load_model(content, device="cpu", precision=precision, tried=Tried(verdict.declaration))
        if not isinstance(original, NetworkDetector) or original.reference is not None:
            return None
        loaded = original.loaded
        scenes = golden_scenes(*original.frame_size(1280, 720))[: loaded.batch or 2]
        pictures = to_network_input(loaded.fitting.fill(scenes, "cpu"), loaded.network.takes, loaded.pixels)
        wide, tall = (loaded.fitting.place(*size) for size in ((1280, 720), (720, 1280)))
        sizes_vary = (wide.input_width, wide.input_height) != (tall.input_width, tall.input_height)
        file = convert(loaded.network, pictures, sizes_vary=sizes_vary)
        network = load_onnx(content.name, file, "cpu")
        converted = NetworkDetector(
            replace(loaded, network=network, batch=network.takes.batch or loaded.batch),
            name=content.name,
            fingerprint=original.fingerprint,
            device="cpu",
            batch_size=BATCH_SIZE_CPU,
        )
        check_network(converted)
        counts = sorted({1, 2, verdict.facts.batch_size if verdict.facts else 1})
        if (found := difference(converted, original, counts)) is not None:
            raise CannotConvert(found)  # noqa: TRY301
        if not is_faster(converted, original):
            raise CannotConvert("it is no faster")  # noqa: TRY301
    except CannotConvert as error:
        _log.info("model stays on torch", model=content.name, reason=str(error))
        return None
    except Exception as error:  # noqa: BLE001 - the model's boundary; it has passed as it is
        if is_lack_of_memory(error):
            raise TooLarge(_needed(meter, error, network_bytes(file_marks(content.path)))) from None
        _log.warning("model stays on torch", exc_info=error, model=content.name)
        return None
    return file


def refused(name: str, error: FrameboxError) -> Verdict:
    return Verdict(name=name, refusal=Refusal(code=error.code, detail=error.detail))


def cost_of(profile: ModelProfile) -> MemoryCost:
    return MemoryCost(profile["host_bytes"], profile["device_bytes"], profile["loading_bytes"])


def _needed(meter: MemoryMeter, error: BaseException | None, file_bytes: int) -> MemoryCost:
    """Return what a model had taken when `error` ended it, and what it then asked for, if that is known."""
    cost = meter.cost()
    cost = MemoryCost(max(cost.host_bytes, file_bytes), cost.device_bytes)
    while error is not None:
        if (found := _REQUESTED.search(str(error))) is not None:
            requested = int(float(found[1]) * _UNITS.get(found[2], 1))
            if isinstance(error, torch.OutOfMemoryError):  # of a device
                return MemoryCost(cost.host_bytes, cost.device_bytes + requested)
            return MemoryCost(cost.host_bytes + requested, cost.device_bytes)
        error = error.__cause__
    return cost
